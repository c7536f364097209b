//! Budgets of kernel launches. What a GPU does for one image takes microseconds, so that launches decide the time. A number
//! above its budget fails; one far below lowers the budget.

use burn::tensor::Device;
use burn_var::Scales;
use burn_var_tests::launches::{Launches, Models, total};

fn models() -> Models {
    let scales = Scales::square(&[1, 2, 3, 4]).expect("a schedule");
    Models::new(2, 128, scales, &Device::wgpu(Default::default())).expect("sizes that fit")
}

fn check(what: &str, launches: &Launches, budget: usize) {
    let found = total(launches);
    assert!(found <= budget, "{what}: {found} launches, the budget is {budget}: {launches:#?}");
    assert!(found * 10 >= budget * 9, "{what}: {found} launches; lower the budget of {budget}");
}

#[test]
fn one_image_with_guidance_takes_few_launches() {
    let _alone = crate::alone();
    let (scales, tokens) = models().generation().expect("an image");
    assert_eq!(tokens.len(), 30, "one token per place");
    for (k, (launches, budget)) in scales.iter().zip([40, 33, 33, 33]).enumerate() {
        check(&format!("scale {k}"), launches, budget);
    }
}

#[test]
fn a_training_step_takes_few_launches() {
    let _alone = crate::alone();
    let (parts, loss) = models().training_step().expect("a step");
    assert!(loss.is_finite(), "the loss is a number");
    for ((part, launches), budget) in parts.iter().zip([18, 56, 146, 12]) {
        check(part, launches, budget);
    }
}
