//! Comparison with a case, which collects every difference.

use std::collections::BTreeSet;

use burn::tensor::{Int, Tensor};
use burn_var::ops::Precision;
use serde_json::Value;

use crate::golden::{Array, Case, Tolerance, is_default_folder};
use crate::gradients::Gradients;
use crate::weightgen::unit;

/// The largest share of the largest gradient that a gradient of 0 may have in single precision.
const ROUNDING: f64 = 1e-6;

/// The roundings by a precision that a number may be off by, each relative to the largest number of its array.
///
/// A product rounds both inputs, by at most a rounding each and by `1 / sqrt(3)` of it in the mean of squares. Independent
/// errors of `n` products in a row add up to `sqrt(2 n / 3)`, and the largest of some ten thousand numbers is off by four
/// times that: 33 for the hundred products of the deepest case, rounded to a power of two.
pub const ROUNDINGS: f64 = 32.0;

/// Returns the largest relative error of rounding a number to a precision: half of the last bit.
pub fn unit_roundoff(precision: Precision) -> f64 {
    match precision {
        Precision::Exact => 0.0,
        Precision::Tf32 | Precision::F16 => 2.0_f64.powi(-11),
        Precision::Bf16 => 2.0_f64.powi(-8),
    }
}

/// The comparisons of one case on one device.
pub struct Checks<'a> {
    case: &'a Case,
    precision: Precision,
    failures: Vec<String>,
    compared: BTreeSet<String>,
    worst: f64,
    beyond: usize,
}

impl<'a> Checks<'a> {
    /// Starts without any comparison.
    pub fn new(case: &'a Case) -> Self {
        Self::in_precision(case, Precision::Exact)
    }

    /// Starts without any comparison, of results that were computed in a precision: tolerances are those of the case and
    /// [`ROUNDINGS`] of it.
    pub fn in_precision(case: &'a Case, precision: Precision) -> Self {
        Self { case, precision, failures: Vec::new(), compared: BTreeSet::new(), worst: 0.0, beyond: 0 }
    }

    /// Returns the largest error so far, in roundings of the precision; see [`ROUNDINGS`].
    pub fn worst(&self) -> f64 {
        self.worst
    }

    /// Returns the number of comparisons so far whose error is beyond the case's own tolerance.
    pub fn beyond(&self) -> usize {
        self.beyond
    }

    /// Returns what the precision adds to a tolerance, for numbers of which `largest` is the largest. Notes the error
    /// beyond the case's own tolerance.
    fn widened(&mut self, excess: f64, largest: f64) -> f64 {
        let rounding = unit_roundoff(self.precision) * largest;
        if excess > 0.0 {
            self.beyond += 1;
            self.worst = self.worst.max(excess / rounding);
        }
        ROUNDINGS * rounding
    }

    /// Notes a failure.
    pub fn fail(&mut self, message: impl Into<String>) {
        self.failures.push(message.into());
    }

    /// Notes a failure unless `holds`.
    pub fn require(&mut self, holds: bool, message: impl FnOnce() -> String) {
        if !holds {
            self.fail(message());
        }
    }

    /// Compares with the float array `name`; see [`Case::tolerance`] for `group`.
    pub fn floats<const D: usize>(&mut self, name: &str, group: &str, found: Tensor<D>) {
        let shape = found.dims().to_vec();
        match found.try_into_data().map(|data| data.try_into_vec_as::<f64>()) {
            Ok(Ok(values)) => self.array(name, group, Array { shape, values }),
            other => self.fail(format!("`{name}`: the result cannot be read: {other:?}")),
        }
    }

    /// Compares with the integer array `name`.
    pub fn ids<const D: usize>(&mut self, name: &str, group: &str, found: Tensor<D, Int>) {
        let shape = found.dims().to_vec();
        match found.try_into_data().map(|data| data.try_into_vec_as::<f64>()) {
            Ok(Ok(values)) => self.array(name, group, Array { shape, values }),
            other => self.fail(format!("`{name}`: the result cannot be read: {other:?}")),
        }
    }

    /// Compares with the array `name`.
    pub fn array(&mut self, name: &str, group: &str, found: Array) {
        self.compared.insert(name.to_owned());
        if !self.case.has(name) {
            return self.fail(format!("the case has no array `{name}`"));
        }
        let mut tolerance = self.case.tolerance(name, group);
        if self.precision != Precision::Exact && tolerance != Tolerance::EXACT {
            let expected = self.case.array(name);
            let finite = || expected.values.iter().zip(&found.values).filter(|(e, _)| e.is_finite());
            let excess = finite().map(|(e, f)| (e - f).abs() - tolerance.of(*e)).fold(0.0, f64::max);
            let largest = finite().map(|(e, _)| e.abs()).fold(0.0, f64::max);
            tolerance.absolute += self.widened(excess, largest);
        }
        if let Err(message) = compare(&self.case.array(name), &found, tolerance) {
            self.fail(format!("`{name}`: {message}"));
        }
    }

    /// Marks an expected array as compared elsewhere.
    pub fn skip(&mut self, name: impl Into<String>) {
        self.compared.insert(name.into());
    }

    /// Compares a single number.
    pub fn scalar(&mut self, name: &str, expected: f64, found: f64, tolerance: Tolerance) {
        let difference = (found - expected).abs();
        let mut tolerance = tolerance;
        if self.precision != Precision::Exact && tolerance != Tolerance::EXACT {
            tolerance.absolute += self.widened(difference - tolerance.of(expected), expected.abs());
        }
        // Not `difference > limit`, which a NaN would pass.
        let holds = difference <= tolerance.of(expected);
        self.require(holds, || {
            format!(
                "`{name}`: expected {expected}, found {found} (off by {difference:e}, allowed {:e})",
                tolerance.of(expected)
            )
        });
    }

    /// Compares gradients with entries of `l2` (Euclidean norm) and `dot` (product with a vector derived from the name),
    /// which catches transposed and permuted values. An entry of `null` or of norm 0 expects no gradient, or one of zeros.
    /// A gradient that is 0 except for rounding, such as one behind a norm, may be as large as 1e-6 of the largest.
    pub fn gradients(&mut self, pointer: &str, found: &Gradients) {
        let entries: serde_json::Map<String, Value> = self.case.get(pointer);
        let norm = |entry: &Value| entry.get("l2").and_then(Value::as_f64);
        let largest = entries.values().filter_map(norm).fold(0.0, f64::max);
        let mut tolerance = self.case.tolerance("grads", "grads");
        tolerance.absolute += ROUNDING * largest;
        for (key, expected) in entries {
            let name = format!("{pointer}, {key}");
            match (found.get(&key), expected) {
                (None, _) => self.fail(format!("{name}: the model has no such parameter")),
                (Some(gradient), expected) if norm(&expected).is_none_or(|norm| norm == 0.0) => {
                    self.require(gradient.is_none_or(|g| g.values.iter().all(|x| *x == 0.0)), || {
                        format!("{name}: no gradient should arrive, one does")
                    });
                }
                (Some(None), _) => self.fail(format!("{name}: no gradient arrives")),
                (Some(Some(gradient)), expected) => {
                    self.fingerprint(&name, &format!("grad:{key}"), gradient, &expected, tolerance)
                }
            }
        }
    }

    /// Compares shape, `l2` and `dot` of one array. The dot product may be small by chance, so its error is measured
    /// against the norm.
    pub fn fingerprint(&mut self, name: &str, vector: &str, found: &Array, expected: &Value, tolerance: Tolerance) {
        let shape: Option<Vec<usize>> =
            expected.get("shape").and_then(|shape| serde_json::from_value(shape.clone()).ok());
        self.require(shape.as_ref().is_none_or(|shape| *shape == found.shape), || {
            format!("{name}: expected shape {shape:?}, found {:?}", found.shape)
        });
        let finite: Vec<f64> = found.values.iter().map(|x| if x.is_finite() { *x } else { 0.0 }).collect();
        let non_finite = found.values.iter().filter(|x| !x.is_finite()).count() as u64;
        let expected_non_finite = expected.get("non_finite").and_then(Value::as_u64).unwrap_or(0);
        self.require(non_finite == expected_non_finite, || {
            format!("{name}: expected {expected_non_finite} values that are not finite, found {non_finite}")
        });
        let number = |field: &str| expected.get(field).and_then(Value::as_f64);
        let norm = finite.iter().map(|x| x * x).sum::<f64>().sqrt();
        if let Some(l2) = number("l2") {
            self.scalar(&format!("{name}, l2"), l2, norm, tolerance);
            if let Some(dot) = number("dot") {
                let found: f64 = finite.iter().zip(unit(vector)).map(|(x, t)| x * t).sum();
                let mut limit = Tolerance { absolute: tolerance.of(l2.max(dot.abs())), relative: 0.0 };
                if self.precision != Precision::Exact {
                    // The size of the array, not of the product, is what was rounded.
                    limit.absolute += self.widened((found - dot).abs() - limit.absolute, l2);
                }
                self.scalar(&format!("{name}, dot"), dot, found, limit);
            }
        }
    }

    /// Ends the comparison. For the cases in the repository, an expected array that was not compared is a failure too.
    ///
    /// # Errors
    /// Returns all failures in one text.
    pub fn finish(mut self) -> Result<(), String> {
        let unseen: Vec<_> =
            self.case.arrays_of_role("expected").into_iter().filter(|name| !self.compared.contains(name)).collect();
        if !unseen.is_empty() && is_default_folder() {
            self.fail(format!("expected arrays that the reader does not compare: {}", unseen.join(", ")));
        }
        if self.failures.is_empty() { Ok(()) } else { Err(self.failures.join("\n")) }
    }
}

/// Compares two arrays element by element.
///
/// # Errors
/// Names the number of elements that differ, and the worst.
fn compare(expected: &Array, found: &Array, tolerance: Tolerance) -> Result<(), String> {
    if expected.shape != found.shape {
        return Err(format!("expected shape {:?}, found {:?}", expected.shape, found.shape));
    }
    let mut wrong = 0;
    let mut worst = (0.0, 0);
    for (i, (e, f)) in expected.values.iter().zip(&found.values).enumerate() {
        let difference = (e - f).abs();
        // Infinities of one sign differ by NaN, and are equal.
        if e == f || difference <= tolerance.of(*e) {
            continue;
        }
        wrong += 1;
        let badness =
            if difference.is_nan() { f64::INFINITY } else { difference / tolerance.of(*e).max(f64::MIN_POSITIVE) };
        if badness > worst.0 {
            worst = (badness, i);
        }
    }
    if wrong == 0 {
        return Ok(());
    }
    let (e, f) = (expected.values[worst.1], found.values[worst.1]);
    Err(format!(
        "{wrong} of {} elements differ, the worst at {:?}: expected {e}, found {f} (off by {:e}, allowed {:e})",
        expected.values.len(),
        position(worst.1, &expected.shape),
        (e - f).abs(),
        tolerance.of(e)
    ))
}

/// Returns the indices of element `i`.
fn position(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut indices: Vec<usize> = shape
        .iter()
        .rev()
        .map(|side| {
            let index = i % side;
            i /= side;
            index
        })
        .collect();
    indices.reverse();
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_element_is_named() {
        let array = |values: &[f64]| Array { shape: vec![2, 3], values: values.to_vec() };
        let tolerance = Tolerance { absolute: 0.1, relative: 0.0 };
        let expected = array(&[0.0, 1.0, 2.0, 3.0, f64::NEG_INFINITY, 5.0]);
        assert_eq!(compare(&expected, &expected, Tolerance::EXACT), Ok(()), "equal, infinities too");
        let message =
            compare(&expected, &array(&[0.05, 1.0, 2.2, 3.0, f64::NEG_INFINITY, 6.0]), tolerance).unwrap_err();
        assert!(message.starts_with("2 of 6 elements differ, the worst at [1, 2]: expected 5, found 6"), "{message}");
        let message = compare(&expected, &array(&[0.0, f64::NAN, 2.0, 3.0, f64::NEG_INFINITY, 5.0]), tolerance);
        assert!(message.unwrap_err().contains("[0, 1]"), "a NaN is wrong");
        let flat = Array { shape: vec![6], ..expected.clone() };
        assert!(compare(&expected, &flat, tolerance).unwrap_err().contains("shape"), "shapes are compared");
    }
}
