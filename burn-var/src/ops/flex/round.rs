use super::bridge::{Array, Kernel};
use crate::ops::precision::{Precision, Rounding, What};

/// Numbers per task.
const PIECE: usize = 1 << 14;

impl Kernel<1> for Rounding {
    type Saved = ();

    fn forward(&self, [x]: [Array; 1]) -> (Array, ()) {
        (if self.what == What::Values { rounded(x, self.precision) } else { x }, ())
    }

    fn backward(&self, (): (), grad: Array, _: [bool; 1]) -> [Option<Array>; 1] {
        [Some(if self.what == What::Gradient { rounded(grad, self.precision) } else { grad })]
    }
}

fn rounded(x: Array, precision: Precision) -> Array {
    let (x, _) = x.update(PIECE, |_, piece| piece.iter_mut().for_each(|x| *x = precision.round(*x)));
    x
}
