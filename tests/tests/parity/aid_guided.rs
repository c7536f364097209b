//! Generation under AID-VAR's guidance, against `aid_guided_inference` of its `models/var.py`.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::rc::Rc;

use burn::tensor::{Device, Tensor};
use burn_var::guidance::{Aid, AidWeight, BatchInfo, Cfg, Guidance};
use burn_var::sampling::Sampler;
use burn_var::scales::ScaleAt;
use burn_var::{BatchRequest, Result, Tokenizer, generate};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::Case;

use super::{aid_injector, var, vqvae};

/// Keeps the maps that an injector computes.
struct Watched {
    aid: Aid,
    maps: Rc<RefCell<Vec<Tensor<3>>>>,
}

impl Guidance for Watched {
    fn name(&self) -> &'static str {
        self.aid.name()
    }

    fn begin(&mut self, batch: &BatchInfo<'_>) -> Result<()> {
        self.aid.begin(batch)
    }

    fn hidden(&mut self, at: ScaleAt<'_>, codes: Option<&Tensor<3>>, hidden: Tensor<3>) -> Result<Tensor<3>> {
        self.maps.borrow_mut().extend(self.aid.map(at, codes)?);
        self.aid.hidden(at, codes, hidden)
    }
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let tokenizer = vqvae::config(case, &["/config/vae", "/config"]);
    let tokenizer = vqvae::from_recipe(&tokenizer, &case.get("/weightgen/vae"), device)?;
    let transformer = var::from_recipe(case, device)?;
    let config = aid_injector::config(case, "/config/injector");
    let injector = aid_injector::from_recipe(&config, &case.get("/weightgen/planner"), device)?;
    let conditions = case.conditions("labels", transformer.config().num_classes);
    let strength: f64 = case.get("/cfg");

    let plain = var::greedy(&tokenizer, &transformer, &conditions, strength)?;
    for k in 0..tokenizer.scales().len() {
        checks.ids(&format!("unguided.ids_{k}"), "ids", plain.result.tokens.map(k));
    }
    checks.floats("unguided.logits_last", "logits", plain.logits[plain.logits.len() - 1].clone());

    let weights: Vec<f64> = case.get("/guidance_weights");
    for weight in weights.iter().copied().chain([0.0]) {
        let maps = Rc::default();
        let aid = Aid::new(injector.clone(), transformer.word_embed(), AidWeight::Constant(weight))?;
        let watched = Watched { aid, maps: Rc::clone(&maps) };
        let guidance: Vec<Box<dyn Guidance>> = vec![Box::new(watched), Box::new(Cfg::ramp(strength))];
        let request = BatchRequest { sampler: Sampler::greedy(), ..BatchRequest::new(conditions.clone(), 0) };
        let mut logits = Vec::new();
        let generated = generate(&tokenizer, &transformer, guidance, request, &mut |done| {
            logits.push(done.logits.clone());
            ControlFlow::Continue(())
        })?;
        if weight == 0.0 {
            let same = logits.iter().zip(&plain.logits).all(|(a, b)| a.to_data() == b.to_data());
            checks.require(same, || "weight 0 is not bit-identical to no injector".to_owned());
            continue;
        }
        let changed = generated.tokens.sequence().not_equal(plain.result.tokens.sequence()).int().sum();
        let expected: i64 = case.get(&format!("/tokens_changed_vs_unguided/w{weight}"));
        let found = changed.into_scalar::<i64>();
        checks.require(found == expected, || format!("weight {weight}: {found} tokens changed, expected {expected}"));
        for (k, logits) in logits.into_iter().enumerate() {
            checks.floats(&format!("w{weight}.logits_{k}"), "logits", logits);
            checks.ids(&format!("w{weight}.ids_{k}"), "ids", generated.tokens.map(k));
        }
        for (map, k) in maps.borrow().iter().zip(1..) {
            checks.floats(&format!("w{weight}.guidance_{k}"), "guidance", map.clone());
        }
        let image = format!("w{weight}.image");
        let first = case.array(&image).shape[0];
        let decoded = tokenizer.decode(generated.canvas.clone().narrow(0, 0, first));
        checks.floats(&image, "image", (decoded + 1.0) / 2.0);
        checks.floats(&format!("w{weight}.f_hat"), "f_hat", generated.canvas);
    }
    Ok(())
}
