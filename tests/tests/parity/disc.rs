//! The heads of the projected discriminator, against StyleGAN-T's and AID-VAR's.

use burn::tensor::{Device, Tensor};
use burn_var::Result;
use burn_var::models::aid::{
    DiscriminatorHeads, DiscriminatorHeadsConfig, HeadVariant, HingeReduction, generator_loss,
};
use burn_var::weights::{LoadOptions, Pretrained, StateDict, export, load};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use burn_var_tests::gradients::Gradients;
use burn_var_tests::weightgen::WeightGen;

use super::vqvae::number;

/// Returns true for the singular vectors of the spectral norms.
fn is_vector(key: &str) -> bool {
    key.ends_with("weight_u") || key.ends_with("weight_v")
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let device = &device.clone().autodiff();
    let config = config(case);
    let keys = DiscriminatorHeads::keys(&config);
    let side = |name: &str| -> Vec<Tensor<3>> {
        (0..config.heads).map(|head| case.tensor(&format!("{name}_{head}"), device)).collect()
    };
    let condition = case.has("c").then(|| case.tensor::<2>("c", device));
    let (real, fake) = (side("real"), side("fake"));
    let judge = |heads: &DiscriminatorHeads, features: &[Tensor<3>]| heads.forward(features, condition.as_ref());
    let scalars = case.tolerance("scalars", "scalars");
    let expected = |name: &str| case.get::<f64>(&format!("/scalars/{name}"));

    // In use.
    let recipe: WeightGen = case.get("/weightgen");
    let heads = from_recipe(case, &config, &recipe, "uv_eval", device)?;
    checks.floats("eval.logits_real", "logits", judge(&heads, &real)?);
    let tracked: Vec<Tensor<3>> = fake.iter().map(|features| features.clone().require_grad()).collect();
    let logits = judge(&heads, &tracked)?;
    checks.floats("eval.logits_fake", "logits", logits.clone());
    let graph = generator_loss(logits).backward();
    for (head, features) in tracked.iter().enumerate() {
        match features.grad(&graph) {
            Some(grad) => checks.floats(&format!("dfake_{head}"), "dfake", grad),
            None => checks.fail(format!("no gradient reaches the features of head {head}")),
        }
    }
    let r1 = heads.r1(&real, condition.as_ref())?;
    checks.scalar("r1_features", expected("r1_features"), number(&r1), scalars);
    let positions = (config.heads * real[0].dims()[2]) as f64;
    let of_mean = number(&r1) / positions.powi(2);
    checks.scalar("r1_features_of_mean_logit", expected("r1_features_of_mean_logit"), of_mean, scalars);
    checks.gradients("/grads/r1", &Gradients::of(&heads, &r1.backward(), &keys));

    // In training: a step of the power iteration before each pass.
    let first = from_recipe(case, &config, &recipe, "uv_init", device)?.iterated();
    vectors(&first, "uv_after_real", checks)?;
    let second = first.clone().iterated();
    vectors(&second, "uv_after_fake", checks)?;
    for (name, reduction) in
        [("loss_d_mean_logit", HingeReduction::MeanLogit), ("loss_d_elementwise", HingeReduction::Elementwise)]
    {
        // Each loss has a graph of its own, which Burn walks once.
        let (real, fake) = (judge(&first, &real)?, judge(&second, &fake)?);
        checks.floats("train.logits_real", "logits", real.clone());
        checks.floats("train.logits_fake", "logits", fake.clone());
        checks.scalar("loss_g", expected("loss_g"), number(&generator_loss(fake.clone())), scalars);
        let loss = reduction.discriminator_loss(real, fake);
        checks.scalar(name, expected(name), number(&loss), scalars);
        checks.gradients(&format!("/grads/{name}"), &Gradients::of(&second, &loss.backward(), &keys));
    }
    Ok(())
}

fn config(case: &Case) -> DiscriminatorHeadsConfig {
    let variant: String = case.get("/config/variant");
    DiscriminatorHeadsConfig {
        heads: case.get("/config/n_heads"),
        channels: case.get("/config/channels"),
        variant: if variant == "stable" { HeadVariant::Aid } else { HeadVariant::StyleGanT },
        condition: case.get("/config/c_dim"),
        condition_map: case.get("/config/cmap_dim"),
        virtual_batch: case.get("/config/virtual_bs"),
    }
}

/// Builds heads with weights from the recipe and the case's singular vectors.
pub(super) fn from_recipe(
    case: &Case,
    config: &DiscriminatorHeadsConfig,
    recipe: &WeightGen,
    vectors: &str,
    device: &Device,
) -> Result<DiscriminatorHeads> {
    let (module, keys) = (config.init_zeros(device)?, DiscriminatorHeads::keys(config));
    let recipe = recipe.clone();
    let names = export(&module, &keys)?;
    let tensors: Vec<(String, Vec<usize>)> =
        names.keys().map(|key| (key.to_owned(), names.shape(key).unwrap_or_default().to_vec())).collect();
    let given: Vec<(String, Vec<f32>)> = names
        .keys()
        .filter(|key| is_vector(key))
        .map(|key| {
            let values = case.array(&format!("{vectors}.{key}")).values;
            (key.to_owned(), values.into_iter().map(|x| x as f32).collect())
        })
        .collect();
    let dict = StateDict::generated("weightgen", tensors, move |key, shape| {
        let given = given.iter().find(|(name, _)| name == key);
        given.map_or_else(|| recipe.tensor(key, shape), |(_, values)| values.clone())
    })?;
    Ok(load(module, &dict, &keys, LoadOptions::default())?.0)
}

fn vectors(heads: &DiscriminatorHeads, name: &str, checks: &mut Checks<'_>) -> Result<()> {
    let dict = export(heads, &DiscriminatorHeads::keys(heads.config()))?;
    for key in dict.keys().filter(|key| is_vector(key)) {
        let data = dict.tensor(key)?;
        let shape = data.shape().to_vec();
        let values = data.try_into_vec_as().map_err(burn_var::Error::device("read a singular vector"))?;
        checks.array(&format!("{name}.{key}"), "uv", Array { shape, values });
    }
    Ok(())
}
