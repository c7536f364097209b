//! Classification of images that should show known classes.

use serde::{Deserialize, Serialize};

use super::FeatureTable;
use super::scores::check_labels;
use crate::Result;

/// The share of images in which a classifier recognizes the requested class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recognition {
    /// Share of images that the classifier assigns to their label.
    pub share: f64,
    /// The same for each class; classes without images are left out.
    pub classes: Vec<ClassRecognition>,
}

/// One class of a [`Recognition`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassRecognition {
    /// Class label.
    pub label: usize,
    /// Number of images with this label.
    #[serde(rename = "pictures")]
    pub images: usize,
    /// Share of them that the classifier assigns to the class.
    pub share: f64,
    /// Probability that the classifier gives to the class, averaged over them.
    pub confidence: f64,
}

impl Recognition {
    /// Compares the logits in `table` with `labels`, one per image.
    ///
    /// # Errors
    /// [`burn_var::Error::Shape`] if there is not one label per image, [`burn_var::Error::Label`] if the classifier does
    /// not have a label.
    pub fn of(table: &FeatureTable, labels: &[usize]) -> Result<Self> {
        let confidences = confidences(table, labels)?;
        let right = |i: usize| f64::from(top_class(table.logits(i)) == labels[i]);
        let right: Vec<f64> = (0..table.count).map(right).collect();
        let mean =
            |values: &[f64], numbers: &[usize]| numbers.iter().map(|i| values[*i]).sum::<f64>() / numbers.len() as f64;
        let class = |label: usize| {
            let numbers: Vec<usize> = (0..table.count).filter(|i| labels[*i] == label).collect();
            (!numbers.is_empty()).then(|| ClassRecognition {
                label,
                images: numbers.len(),
                share: mean(&right, &numbers),
                confidence: mean(&confidences, &numbers),
            })
        };
        let all: Vec<usize> = (0..table.count).collect();
        Ok(Self { share: mean(&right, &all), classes: (0..table.dims[2]).filter_map(class).collect() })
    }
}

/// Returns the probability that the classifier gives to each image's own label.
///
/// # Errors
/// The errors of [`Recognition::of`].
pub fn confidences(table: &FeatureTable, labels: &[usize]) -> Result<Vec<f64>> {
    check_labels(table, labels)?;
    let classes = table.dims[2];
    if classes == 0 {
        return Err(burn_var::Error::shape("logits", "one logit per class: the network classifies nothing", [0]).into());
    }
    if let Some(&label) = labels.iter().find(|label| **label >= classes) {
        return Err(burn_var::Error::Label { label, classes }.into());
    }
    let confidence = |i: usize| {
        let logits = table.logits(i);
        let largest = f64::from(logits[top_class(logits)]);
        let exp = |x: f32| (f64::from(x) - largest).exp();
        exp(logits[labels[i]]) / logits.iter().map(|x| exp(*x)).sum::<f64>()
    };
    Ok((0..table.count).map(confidence).collect())
}

/// Returns the class with the highest logit.
fn top_class(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{Features, NetworkIdentity};

    #[test]
    fn counts_by_class() {
        let logits = vec![2.0, 0.0, 0.0, 0.0, 3.0, 0.0, 1.0, 1.0 + 2_f32.ln(), 1.0];
        let features = Features { features: vec![0.0; 3], spatial: Vec::new(), logits };
        let table =
            FeatureTable { network: NetworkIdentity::new("test", "01", "none"), count: 3, dims: [1, 0, 3], features };
        let found = Recognition::of(&table, &[0, 1, 0]).unwrap();
        assert!((found.share - 2.0 / 3.0).abs() < 1e-12, "two of three: {found:?}");
        let [zero, one] = &found.classes[..] else { panic!("two classes have images: {found:?}") };
        assert_eq!((zero.label, zero.images, zero.share), (0, 2, 0.5));
        assert_eq!((one.label, one.images, one.share), (1, 1, 1.0));
        assert!((confidences(&table, &[0, 1, 0]).unwrap()[2] - 0.25).abs() < 1e-6, "one of 1 + 2 + 1");
        assert!(Recognition::of(&table, &[0, 1]).is_err(), "a label is missing");
        assert!(Recognition::of(&table, &[0, 1, 3]).unwrap_err().to_string().contains("3 classes, 0 to 2"));
    }
}
