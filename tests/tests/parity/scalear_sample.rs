//! Generation of FlexVAR with a masked first scale, against `models/scalear.py` of SAR.

use std::ops::ControlFlow;

use burn::tensor::{Bool, Device, Int, Tensor};
use burn_var::generation::{NextScale, ScaleInput, Vocabulary};
use burn_var::guidance::{Cfg, Guidance, Schedule};
use burn_var::models::flexvar::{FlexVar, FlexVarState, MaskedFirst};
use burn_var::rng::Rng;
use burn_var::sampling::Sampler;
use burn_var::scales::ScaleAt;
use burn_var::{BatchRequest, Condition, MapSize, Result, Scales, generate};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::Case;

use super::scalear_forward::models;

/// A transformer that unmasks its first scale in a given order.
struct Ordered {
    transformer: FlexVar,
    order: Tensor<2, Int>,
}

impl NextScale for Ordered {
    type State = FlexVarState;

    fn scales(&self) -> &Scales {
        self.transformer.scales()
    }

    fn vocabulary(&self) -> Vocabulary {
        self.transformer.vocabulary()
    }

    fn num_classes(&self) -> usize {
        self.transformer.num_classes()
    }

    fn check_scales(&self, scales: &Scales) -> Result<()> {
        self.transformer.check_scales(scales)
    }

    fn start(&self, conditions: &[Condition], scales: &Scales) -> Result<FlexVarState> {
        Ok(self.transformer.start(conditions, scales)?.with_order(self.order.clone()))
    }

    fn embed(&self, state: &FlexVarState, at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        self.transformer.embed(state, at, input)
    }

    fn step(&self, state: &mut FlexVarState, at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        self.transformer.step(state, at, hidden)
    }

    fn kept(&self, state: &mut FlexVarState, at: ScaleAt<'_>, rngs: &mut [Rng]) -> Result<Option<Tensor<2, Bool>>> {
        self.transformer.kept(state, at, rngs)
    }
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let sizes: Vec<MapSize> = case.get("/config/patch_nums");
    let steps: usize = case.get("/config/cosine_steps");
    let first = sizes[0].area();
    let after = MaskedFirst::unmasked(first, steps);
    let before = [&[0], &after[..steps - 1]].concat();
    let bounds = before.iter().zip(&after).flat_map(|(start, end)| [*start as i64, *end as i64]).collect::<Vec<_>>();
    let bounds = Tensor::<1, Int>::from_ints(bounds.as_slice(), device).reshape([steps, 2]);
    checks.ids("steps", "steps", bounds);

    let scales = Scales::new([vec![sizes[0]; steps], sizes[1..].to_vec()].concat())?;
    let (tokenizer, transformer) = models(case, &scales, device)?;
    let conditions = case.conditions("labels", transformer.config().num_classes);
    let order: Tensor<2, Int> = case.ids("orders", device);
    let half = 0.5 * case.get::<f64>("/config/cfg");
    let masked = (0..steps).map(|step| half * (1.0 + step as f64 / steps as f64));
    let behind = (1..sizes.len()).map(|k| half * (1.0 + k as f64 / (sizes.len() - 1) as f64));
    let cfg: Box<dyn Guidance> = Box::new(Cfg::new(Schedule::PerScale(masked.chain(behind).collect())));

    let mut done = Vec::new();
    let request = BatchRequest { sampler: Sampler::greedy(), ..BatchRequest::new(conditions, 0) };
    let model = Ordered { transformer, order: order.clone() };
    generate(&tokenizer, &model, vec![cfg], request, &mut |scale| {
        done.push((scale.logits.clone(), scale.ids.clone()));
        ControlFlow::Continue(())
    })?;
    for (k, (logits, ids)) in done.into_iter().enumerate() {
        let (suffix, ids) = match k < steps {
            // Tokens that are not yet unmasked are 0 in the original.
            true => (format!("first_{{}}_{k}"), ids * order.clone().lower_elem(after[k] as i64).int()),
            false => (format!("{{}}_{}", k + 1 - steps), ids),
        };
        checks.floats(&suffix.replace("{}", "logits"), "logits", logits);
        checks.ids(&suffix.replace("{}", "ids"), "ids", ids);
    }
    Ok(())
}
