//! Sizes of a model from the shapes of its checkpoint.

use super::{Kind, StateDict};
use crate::{Error, Result};

/// Returns the shape of a tensor with `N` axes, none of length 0.
///
/// # Errors
/// [`Error::Format`] if the tensor is missing, [`Error::Shape`] if it has another number of axes or an empty one.
pub(crate) fn axes<const N: usize>(dict: &StateDict, key: &str, kind: Kind) -> Result<[usize; N]> {
    let shape = dict.shape(key).ok_or_else(|| {
        let some: Vec<&str> = dict.keys().take(3).collect();
        let reason =
            format!("it is not {}: `{key}` is missing; its tensors are {} ...", kind.with_article(), some.join(", "));
        Error::format(dict.origin(), reason)
    })?;
    match <[usize; N]>::try_from(shape) {
        Ok(shape) if !shape.contains(&0) => Ok(shape),
        _ => Err(Error::shape(key, format!("{N} axes, none empty, in {}", kind.with_article()), shape)),
    }
}

/// Returns the number of consecutive names `name(0)`, `name(1)`, ... that the file has.
pub(crate) fn count(dict: &StateDict, name: impl Fn(usize) -> String) -> usize {
    (0..).take_while(|&i| dict.contains(&name(i))).count()
}
