//! Forward and backward passes of AID-VAR's trainer without any discriminator: rollouts, soft decode, and the injector's gradients
//! through the frozen transformer with its cache, and through the decoder.

use std::ops::ControlFlow;

use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor};
use burn_var::generation::ScaleDone;
use burn_var::guidance::{Aid, AidWeight, Guidance};
use burn_var::models::aid::{Injector, SoftCanvas};
use burn_var::models::var::{Var, VqVae};
use burn_var::sampling::Sampler;
use burn_var::scales::ScaleAt;
use burn_var::weights::Pretrained;
use burn_var::{BatchRequest, Condition, Result, TokenPyramid, Tokenizer, generate};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::Case;
use burn_var_tests::gradients::Gradients;

use super::{aid_injector, var, vqvae};

/// Adds maps that were computed beforehand, as the released trainer does.
struct Fixed {
    maps: Vec<Tensor<3>>,
    weight: f64,
}

impl Guidance for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn hidden(&mut self, at: ScaleAt<'_>, _: Option<&Tensor<3>>, hidden: Tensor<3>) -> Result<Tensor<3>> {
        Ok(match at.k().checked_sub(1) {
            Some(before) => hidden + self.maps[before].clone() * self.weight,
            None => hidden,
        })
    }
}

struct Models {
    tokenizer: VqVae,
    transformer: Var,
    injector: Injector,
    conditions: Vec<Condition>,
    weight: f64,
}

/// The guided rollout, and the canvases softly decoded from its logits.
struct Rollout {
    maps: Vec<Tensor<3>>,
    logits: Vec<Tensor<3>>,
    tokens: TokenPyramid,
    soft: Vec<Tensor<4>>,
}

impl Models {
    fn greedy(&self, guidance: Vec<Box<dyn Guidance>>, seen: &mut dyn FnMut(&ScaleDone)) -> Result<TokenPyramid> {
        let request = BatchRequest { sampler: Sampler::greedy(), ..BatchRequest::new(self.conditions.clone(), 0) };
        let generated = generate(&self.tokenizer, &self.transformer, guidance, request, &mut |done| {
            seen(done);
            ControlFlow::Continue(())
        })?;
        Ok(generated.tokens)
    }

    /// Returns the injector's maps of given tokens, one per scale from the second on.
    fn maps(&self, tokens: &TokenPyramid) -> Result<Vec<Tensor<3>>> {
        let mut aid = Aid::new(self.injector.clone(), self.transformer.word_embed(), AidWeight::default())?;
        let scales = self.tokenizer.scales();
        let map = |k: usize| {
            let codes = self.tokenizer.lookup(tokens.map(k - 1));
            let map = aid.map(scales.at(k), Some(&codes))?;
            Ok(map.expect("there is a scale before"))
        };
        (1..scales.len()).map(map).collect()
    }

    fn rollout(&self, unguided: &TokenPyramid) -> Result<Rollout> {
        let scales = self.tokenizer.scales();
        let maps = self.maps(unguided)?;
        let guidance: Vec<Box<dyn Guidance>> = vec![Box::new(Fixed { maps: maps.clone(), weight: self.weight })];
        let mut canvas = SoftCanvas::new(&self.tokenizer, self.conditions.len(), scales, 1.0);
        let (mut logits, mut soft) = (Vec::new(), Vec::new());
        let tokens = self.greedy(guidance, &mut |done| {
            soft.push(canvas.paint(scales.at(done.k), done.logits.clone()));
            logits.push(done.logits.clone());
        })?;
        Ok(Rollout { maps, logits, tokens, soft })
    }
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let device = &device.clone().autodiff();
    let tokenizer = vqvae::config(case, &["/config/vae", "/config"]);
    let config = aid_injector::config(case, "/config/injector");
    let models = Models {
        tokenizer: vqvae::from_recipe(&tokenizer, &case.get("/weightgen/vae"), device)?.no_grad(),
        transformer: var::from_recipe(case, device)?.no_grad(),
        injector: aid_injector::from_recipe(&config, &case.get("/weightgen/planner"), device)?,
        conditions: case.conditions("labels", var::config(case, "/config").num_classes),
        weight: case.get("/guidance_weight"),
    };
    let scales = models.tokenizer.scales().clone();
    let unguided = models.greedy(Vec::new(), &mut |_| ())?;
    let Rollout { maps, logits, tokens, soft } = models.rollout(&unguided)?;
    let first = |canvas: Tensor<4>| models.tokenizer.decode(canvas.narrow(0, 0, 1));
    checks.floats("guidance_0", "logits", Tensor::<3>::zeros(maps_shape(case), device));
    for k in 0..scales.len() {
        checks.ids(&format!("std_ids_{k}"), "ids", unguided.map(k));
        checks.ids(&format!("fake_ids_{k}"), "ids", tokens.map(k));
        checks.floats(&format!("fake_logits_{k}"), "logits", logits[k].clone());
        if k > 0 {
            checks.floats(&format!("guidance_{k}"), "logits", maps[k - 1].clone());
            checks.floats(&format!("soft_f_hat_{k}"), "images", soft[k].clone());
            checks.floats(&format!("soft_img_{k}"), "images", first(soft[k].clone()));
        }
    }
    let canvases = models.tokenizer.canvases(&unguided);
    checks.floats("hard_img_1", "images", first(canvases[1].clone()));
    // The released code fills the scales that are still to come with the code 0.
    let padded = (2..scales.len()).fold(canvases[1].clone(), |canvas, k| {
        let zeros = Tensor::<2, Int>::zeros([models.conditions.len(), scales.size(k).area()], device);
        models.tokenizer.paint(canvas, scales.at(k), models.tokenizer.lookup(zeros))
    });
    checks.floats("compat_hard_img_1", "images", first(padded));

    let grads = case.tolerance("grads", "grads");
    let keys = Injector::keys(&config);
    let mut compare = |name: &str, loss: Tensor<1>| {
        checks.scalar(name, case.get(&format!("/scalars/{name}")), vqvae::number(&loss), grads);
        let found = Gradients::of(&models.injector, &loss.backward(), &keys);
        checks.gradients(&format!("/grad_injector_of_{name}"), &found);
    };
    let sum = |terms: Vec<Tensor<1>>| terms.into_iter().reduce(|a, b| a + b).expect("two scales or more");
    let entropies = (1..scales.len()).map(|k| {
        let target = unguided.map(k).unsqueeze_dim::<3>(2);
        log_softmax(logits[k].clone(), 2).gather(2, target).mean().neg()
    });
    compare("loss_rec_sum", sum(entropies.collect()));
    // Each loss has a graph of its own, which Burn walks once.
    let soft = models.rollout(&unguided)?.soft;
    let squares = soft.into_iter().skip(1).map(|canvas| models.tokenizer.decode(canvas).square().mean());
    compare("soft_image_loss", sum(squares.collect()));
    Ok(())
}

fn maps_shape(case: &Case) -> [usize; 3] {
    let shape = case.array("guidance_0").shape;
    [shape[0], shape[1], shape[2]]
}
