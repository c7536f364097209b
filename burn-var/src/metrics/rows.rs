use crate::{Error, Result};

/// Checks for a whole number of rows of `dim` finite numbers. Errors count rows from `first`.
pub(super) fn check_rows(name: &str, rows: &[f32], dim: usize, first: u64) -> Result<()> {
    if dim == 0 || !rows.len().is_multiple_of(dim) {
        return Err(Error::shape(name, format!("rows of {dim} numbers, at least one each"), [rows.len()]));
    }
    match rows.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(Error::NonFinite {
            what: format!("number {} of row {} of the {name}", at % dim, first + (at / dim) as u64),
            found: f64::from(rows[at]),
            hint: "check the image and the weights that it comes from",
        }),
        None => Ok(()),
    }
}
