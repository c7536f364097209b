//! Labels of a set of images.

/// Returns sorted labels for `count` images, the same number per class to within one.
pub(crate) fn equal_parts(classes: &[usize], count: usize) -> Vec<usize> {
    (0..count).map(|i| classes[(i as u128 * classes.len() as u128 / count as u128) as usize]).collect()
}

/// Returns labels for `count` images that cycle through `classes`, so that metrics over a part of the images see all
/// classes.
pub(crate) fn in_turn(classes: &[usize], count: usize) -> Vec<usize> {
    classes.iter().copied().cycle().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_equal() {
        assert_eq!(equal_parts(&[4, 1], 4), [4, 4, 1, 1], "two each");
        assert_eq!(equal_parts(&[0, 1, 2], 5), [0, 0, 1, 1, 2], "to within one");
        assert_eq!(equal_parts(&[0, 1, 2], 2), [0, 1], "fewer than classes");
        assert_eq!(in_turn(&[4, 1, 7], 5), [4, 1, 7, 4, 1], "in turn");
    }
}
