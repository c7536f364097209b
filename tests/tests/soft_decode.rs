//! The gradient from images to the injector, through decoder, codebook, logits and the frozen transformer with its cache,
//! against finite differences.

use std::ops::ControlFlow;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Gradients, Tensor};
use burn_var::editing::KnownTokens;
use burn_var::guidance::{Aid, AidWeight, Guidance};
use burn_var::init::{Init, initialize};
use burn_var::models::aid::{Injector, InjectorConfig, SoftCanvas};
use burn_var::models::var::{Var, VarConfig, VqVae, VqVaeConfig};
use burn_var::{BatchRequest, TokenPyramid, Tokenizer, generate};
use serde_json::json;

struct Models {
    tokenizer: VqVae,
    transformer: Var,
    tokens: TokenPyramid,
}

impl Models {
    /// Builds models with weights of one size everywhere, so that the injector's map shows in the images.
    fn new(device: &Device) -> Self {
        let tokenizer: VqVaeConfig = serde_json::from_value(json!({
            "image_channels": 1, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 6, "vocab_size": 11,
            "patch_nums": [1, 2, 3],
        }))
        .expect("sizes");
        let transformer: VarConfig = serde_json::from_value(json!({
            "depth": 2, "embed_dim": 16, "num_heads": 2, "vocab_size": 11, "z_channels": 6, "num_classes": 2,
            "patch_nums": [1, 2, 3],
        }))
        .expect("sizes");
        let transformer = transformer.init_zeros(device).expect("valid");
        let rows: Vec<Vec<u32>> = (0..2).map(|image| (0..14).map(|i| (i * 7 + image * 3) % 11).collect()).collect();
        Self {
            tokenizer: tokenizer.init(3, device).expect("valid").no_grad(),
            transformer: initialize(transformer, 4, |_| Init::Normal(0.25)).no_grad(),
            tokens: TokenPyramid::from_rows(tokenizer.patch_nums.clone(), &rows, device).expect("fits"),
        }
    }

    /// Computes a number from every pixel of the images after each scale; the tokens are given.
    fn loss(&self, injector: &Injector) -> Tensor<1> {
        let aid = Aid::new(injector.clone(), self.transformer.word_embed(), AidWeight::Constant(0.5)).expect("fits");
        let guidance: Vec<Box<dyn Guidance>> = vec![Box::new(aid)];
        let known = Some(KnownTokens::all(self.tokens.clone()));
        let request = BatchRequest { known, ..BatchRequest::classes(&[0, 1], 0) };
        let scales = self.tokens.scales();
        let mut canvas = SoftCanvas::new(&self.tokenizer, 2, scales, 1.0);
        let mut loss: Option<Tensor<1>> = None;
        generate(&self.tokenizer, &self.transformer, guidance, request, &mut |done| {
            let images = self.tokenizer.decode(canvas.paint(scales.at(done.k), done.logits.clone()));
            let term = (images + 0.3).square().sum();
            loss = Some(match loss.take() {
                Some(loss) => loss + term,
                None => term,
            });
            ControlFlow::Continue(())
        })
        .expect("generates");
        loss.expect("scales")
    }
}

/// Moves every parameter along its gradient.
struct Along<'a> {
    graph: &'a Gradients,
    by: f64,
    square: f64,
}

impl ModuleMapper for Along<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = param.val().grad(self.graph) else { return param };
        self.square += number(gradient.clone().square().sum());
        let device = param.val().device();
        let moved = param.val().inner() + gradient * self.by;
        Param::initialized(param.id, Tensor::from_inner(moved).to_device(&device))
    }
}

fn number(value: Tensor<1>) -> f64 {
    value.try_into_scalar::<f32>().expect("a number").into()
}

#[test]
fn the_gradient_is_that_of_finite_differences() {
    let device = Device::default().autodiff();
    let models = Models::new(&device);
    let injector = InjectorConfig { num_heads: 2, ..InjectorConfig::paper(16) }.init(5, &device).expect("valid");
    let injector = initialize(injector, 6, |_| Init::Normal(0.3));
    let graph = models.loss(&injector).backward();
    let mut still = Along { graph: &graph, by: 0.0, square: 0.0 };
    let _ = injector.clone().map(&mut still);
    let norm = still.square.sqrt();
    assert!(norm > 1e-3, "the injector gets a gradient: {norm}");

    // Along the gradient itself, where the slope is its norm.
    let at = |step: f64| {
        let mut along = Along { graph: &graph, by: step / norm, square: 0.0 };
        number(models.loss(&injector.clone().map(&mut along)))
    };
    let step = 0.02;
    let slope = (at(step) - at(-step)) / (2.0 * step);
    assert!((slope - norm).abs() < 0.02 * norm, "slope {slope}, norm of the gradient {norm}");
}
