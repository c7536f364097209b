use crate::{Error, Result};

/// Refuses what is not a whole number of rows of `dim` finite numbers; rows are named by their place after `first`.
pub(super) fn check_rows(name: &str, rows: &[f32], dim: usize, first: u64) -> Result<()> {
    if dim == 0 || !rows.len().is_multiple_of(dim) {
        return Err(Error::shape(name, format!("rows of {dim} numbers, at least one each"), [rows.len()]));
    }
    match rows.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(Error::NonFinite {
            what: format!("number {} of row {} of the {name}", at % dim, first + (at / dim) as u64),
            found: f64::from(rows[at]),
            hint: "look at the picture or the weights it came from",
        }),
        None => Ok(()),
    }
}
