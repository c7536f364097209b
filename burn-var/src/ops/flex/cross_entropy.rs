use std::sync::Arc;

use burn::tensor::{Int, Tensor};
use rayon::prelude::*;

use super::{
    bridge::{Array, Kernel},
    simd::{exp, sums, vectorized},
    softmax::largest,
};

/// Cross-entropy of rows of logits.
#[derive(Clone, Debug)]
pub(in crate::ops) struct CrossEntropy {
    targets: Arc<[usize]>,
    smoothing: f32,
}

impl CrossEntropy {
    /// # Panics
    /// If the targets cannot be read, or one is negative.
    pub(in crate::ops) fn new(targets: Tensor<2, Int>, smoothing: f32) -> Self {
        let class = |target: i64| usize::try_from(target).expect("cross_entropy: a target is negative");
        let targets = targets.into_data().iter::<i64>().map(class).collect();
        Self { targets, smoothing }
    }
}

impl Kernel<1> for CrossEntropy {
    /// The logits, and the log-sum-exp of each row.
    type Saved = (Array, Vec<f32>);

    fn forward(&self, [logits]: [Array; 1]) -> (Array, Self::Saved) {
        let [batch, length, classes] = logits.dims();
        assert_eq!(self.targets.len(), batch * length, "cross_entropy: number of targets");
        let rows = logits.values().par_chunks(classes.max(1)).zip(&self.targets[..]);
        let (losses, totals) = rows
            .map(|(row, &target)| {
                let [total, mean] = log_sum_exp_and_mean(row);
                (total - (1.0 - self.smoothing) * row[target] - self.smoothing * mean, total)
            })
            .unzip();
        (Array::new(losses, [batch, length]), (logits, totals))
    }

    fn backward(&self, (logits, totals): Self::Saved, grad: Array, _: [bool; 1]) -> [Option<Array>; 1] {
        let [_, _, classes] = logits.dims();
        let (out, _) = logits.update(classes, |row, values| {
            let grad = grad.values()[row];
            softmax_times(totals[row], grad, grad * self.smoothing / classes as f32, values);
            values[self.targets[row]] -= grad * (1.0 - self.smoothing);
        });
        [Some(out)]
    }
}

vectorized! {
    fn log_sum_exp_and_mean(row: &[f32]) -> [f32; 2] {
        let max = largest(row);
        let [sum, total] = sums(row, row, |x, _| [exp::<FMA>(x - max), x]);
        [max + sum.ln() as f32, (total / row.len() as f64) as f32]
    }

    /// Computes `factor softmax(row) - shift`, given the row's log-sum-exp.
    fn softmax_times(total: f32, factor: f32, shift: f32, row: &mut [f32]) {
        for value in row {
            *value = exp::<FMA>(*value - total) * factor - shift;
        }
    }
}
