/// Returns the orthonormal DCT-II of `n` numbers as a matrix `[frequency, place]`, row-major; its transpose is the
/// inverse transform.
pub fn dct_matrix(n: usize) -> Vec<f64> {
    let entry = |i: usize| {
        let (frequency, place) = ((i / n) as f64, (i % n) as f64);
        let scale = if i < n { 1.0 } else { 2.0 } / n as f64;
        scale.sqrt() * (core::f64::consts::PI * frequency * (place + 0.5) / n as f64).cos()
    };
    (0..n * n).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transform_is_orthonormal() {
        for n in [1, 2, 5, 16] {
            let c = dct_matrix(n);
            for i in 0..n * n {
                let value: f64 = (0..n).map(|j| c[j * n + i / n] * c[j * n + i % n]).sum();
                let expected = if i % (n + 1) == 0 { 1.0 } else { 0.0 };
                assert!((value - expected).abs() < 1e-14, "entry {i} of the product, {n} numbers: {value}");
            }
        }
    }
}
