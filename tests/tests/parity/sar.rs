//! The losses of SAR over FlexVAR, against `trainer.py` of its code, and the paper's reading of them.

use burn::tensor::{Device, Tensor};
use burn_var::guidance::Schedule;
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::flexvar::{FirstScale, FlexVae, FlexVaeConfig, FlexVar, FlexVarConfig, SeenScales};
use burn_var::models::var::VarInit;
use burn_var::weights::{LoadOptions, Pretrained, StateDict, export};
use burn_var::{Condition, Result, Scales, TokenPyramid, Tokenizer};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use burn_var_tests::gradients::Gradients;
use burn_var_tests::weightgen::WeightGen;
use burn_var_train::sar::{
    Sampling, SarBatch, SarConfig, SarLoss, StudentContext, StudentScales, Target, guided_logits, sar_loss,
};

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let scales: Scales = case.get("/config/patch_nums");
    let tokenizer = tokenizer(case, &scales, device)?;
    let tokens = tokenizer.encode(case.tensor("image", device), &scales)?;
    checks.ids("gt_ids", "gt_ids", tokens.sequence());
    let vocabulary = tokenizer.vocabulary().size;
    let config = transformer_config(case, &scales, vocabulary, tokenizer.z_channels());
    let runs: Vec<String> = case.names().filter_map(|name| name.strip_suffix("_losses")).map(str::to_owned).collect();
    for run in runs {
        let transformer = transformer(&config, &case.get("/weightgen"), &device.clone().autodiff())?;
        Run { name: &run, case, device, tokenizer: &tokenizer, transformer, tokens: &tokens }.check(checks)?;
    }
    Ok(())
}

/// Builds the tokenizer with weights from the recipe.
fn tokenizer(case: &Case, scales: &Scales, device: &Device) -> Result<FlexVae> {
    let size = |field: &str| case.get::<usize>(&format!("/config/vae/{field}"));
    let mut vq = VqModelConfig {
        image_channels: case.array("image").shape[1],
        ch: size("ch"),
        z_channels: size("z_channels"),
        ..VqModelConfig::vq16(size("codebook_size"), size("codebook_embed_dim"))
    };
    if let Some(factors) = case.find("/config/vae/ch_mult") {
        vq.ch_mult = factors;
    }
    if let Some(blocks) = case.find("/config/vae/num_res_blocks") {
        vq.num_res_blocks = blocks;
    }
    let gain = case.find("/config/vae/weightgen_gain").unwrap_or(1.0);
    tokenizer_from(vq, scales, &WeightGen { gain, ..WeightGen::default() }, device)
}

/// Builds a tokenizer of given sizes with weights from the recipe.
pub(super) fn tokenizer_from(
    vq: VqModelConfig,
    scales: &Scales,
    recipe: &WeightGen,
    device: &Device,
) -> Result<FlexVae> {
    let config = FlexVaeConfig { vq, patch_nums: scales.clone() };
    let weights = recipe.for_module(&config.init_zeros(device)?, &FlexVae::keys(&config));
    FlexVae::load_with(&weights, &config, LoadOptions::default(), device)
}

/// Reads the sizes of the transformer.
pub(super) fn transformer_config(case: &Case, scales: &Scales, vocab_size: usize, z_channels: usize) -> FlexVarConfig {
    let size = |field: &str| case.get::<usize>(&format!("/config/{field}"));
    FlexVarConfig {
        depth: size("depth"),
        embed_dim: size("embed_dim"),
        num_heads: size("num_heads"),
        mlp_ratio: case.find("/config/mlp_ratio").unwrap_or(4.0),
        norm_eps: case.find("/config/norm_eps").unwrap_or(1e-6),
        shared_aln: case.get("/config/shared_aln"),
        attn_l2_norm: case.get("/config/attn_l2_norm"),
        vocab_size,
        z_channels,
        num_classes: size("num_classes"),
        patch_nums: scales.clone(),
        positions: case.find("/config/positions").unwrap_or(32),
        drop_path_rate: 0.0,
        first: FirstScale::OneShot,
        sees: SeenScales::Before,
    }
}

/// Builds a transformer with weights from the recipe. What it skips, the table of positions, has its initial value.
pub(super) fn transformer(config: &FlexVarConfig, recipe: &WeightGen, device: &Device) -> Result<FlexVar> {
    let initial = export(&config.init(VarInit::default(), 0, device)?, &FlexVar::keys(config))?;
    let tensors: Vec<(String, Vec<usize>)> =
        initial.keys().map(|key| (key.to_owned(), initial.shape(key).unwrap_or_default().to_vec())).collect();
    let recipe = recipe.clone();
    let weights = StateDict::generated("weightgen", tensors, move |key, shape| {
        match recipe.skip_suffixes.iter().any(|suffix| key.ends_with(suffix)) {
            true => initial.tensor(key).ok().and_then(|data| data.try_into_vec_as::<f32>().ok()).unwrap_or_default(),
            false => recipe.tensor(key, shape),
        }
    })?;
    FlexVar::load_with(&weights, config, LoadOptions::default(), device)
}

/// One of the case's runs: a name whose parts say what is trained.
struct Run<'a> {
    name: &'a str,
    case: &'a Case,
    device: &'a Device,
    tokenizer: &'a FlexVae,
    transformer: FlexVar,
    tokens: &'a TokenPyramid,
}

impl Run<'_> {
    fn check(&self, checks: &mut Checks<'_>) -> Result<()> {
        match self.name {
            "tf" => self.teacher_forced(checks),
            name if name.starts_with("paper_") => self.paper(checks),
            _ => self.released(checks),
        }
    }

    fn array(&self, name: &str) -> String {
        format!("{}_{name}", self.name)
    }

    /// Computes the losses with changed axes.
    fn loss(&self, config: &SarConfig, label_smoothing: f64) -> Result<SarLoss> {
        let scales = self.tokens.scales();
        let conditions = self.conditions();
        let batch = SarBatch {
            tokens: self.tokens,
            conditions: &conditions,
            label_smoothing,
            scales: &config.scales.of(scales, &mut burn_var::rng::Rng::new(0, "none", 0)),
            sample: Vec::new(),
            drop_path: None,
        };
        let own = match self.name.contains("given") {
            true => Some(TokenPyramid::from_sequence(scales.clone(), self.case.ids("given_sampled_ids", self.device))?),
            false => None,
        };
        sar_loss(config, self.tokenizer, &self.transformer, batch, own)
    }

    fn conditions(&self) -> Vec<Condition> {
        self.case.conditions("labels", self.transformer.config().num_classes)
    }

    /// Returns a preset with the weight, the guidance and the draw of the run.
    fn axes(&self, preset: SarConfig) -> SarConfig {
        let cfg = match self.name.ends_with("_cfg") {
            true => Schedule::HalfRamp(self.case.get("/config/sf_cfg_scale")),
            false => Schedule::Constant(0.0),
        };
        SarConfig { weight: self.case.get("/config/sigma"), sampling: Sampling::Argmax, cfg, ..preset }
    }

    fn smoothing(&self) -> f64 {
        self.case.find("/config/label_smooth").unwrap_or(0.0)
    }

    fn teacher_forced(&self, checks: &mut Checks<'_>) -> Result<()> {
        checks.floats("tf_input", "tf_input", self.tokenizer.teacher_input(self.tokens));
        let SarLoss { teacher, logits, .. } = self.loss(&self.axes(SarConfig::released()), self.smoothing())?;
        checks.floats("tf_logits", "tf_logits", logits);
        let zero = teacher.clone().inner().zeros_like();
        let found = Tensor::cat(vec![teacher.clone().inner(), zero, teacher.clone().inner()], 0);
        checks.floats(&self.array("losses"), "losses", found);
        self.gradients(teacher, true, checks);
        Ok(())
    }

    fn released(&self, checks: &mut Checks<'_>) -> Result<()> {
        let target = if self.name.starts_with("gt_") { Target::Gt } else { Target::TfHard };
        let config = SarConfig { target, ..self.axes(SarConfig::released()) };
        let SarLoss { teacher, student, total, logits, passes, .. } = self.loss(&config, self.smoothing())?;
        let losses = [&teacher, &student, &total].map(|loss| loss.clone().inner());
        checks.floats(&self.array("losses"), "losses", Tensor::cat(losses.to_vec(), 0));
        for pass in passes {
            checks.floats(&self.array("sf_input"), "sf_input", pass.input);
            checks.floats(&self.array("sf_logits"), "sf_logits", pass.logits);
        }
        if self.case.has(&self.array("guided_logits")) {
            let (scales, input) = (self.tokens.scales(), self.tokenizer.teacher_input(self.tokens));
            let found = guided_logits(&self.transformer, &logits, input, scales, &config.cfg, None)?;
            checks.floats(&self.array("guided_logits"), "guided_logits", found.guided);
            match found.null {
                Some(null) => checks.floats(&self.array("uncond_logits"), "uncond_logits", null),
                None => checks.fail(format!("{}: no logits of the null condition", self.name)),
            }
        }
        self.gradients(total, true, checks);
        Ok(())
    }

    fn paper(&self, checks: &mut Checks<'_>) -> Result<()> {
        let config = self.axes(SarConfig::paper());
        assert_eq!((config.scales, config.context), (StudentScales::All, StudentContext::Full));
        let hard = self.loss(&config, 0.0)?;
        let other = |target| Ok(self.loss(&SarConfig { target, ..config.clone() }, 0.0)?.student.inner());
        let losses = vec![hard.teacher.inner(), hard.student.inner(), other(Target::Gt)?, other(Target::TfSoft)?];
        checks.floats(&self.array("losses"), "losses", Tensor::cat(losses, 0));
        let (inputs, mut logits): (Vec<_>, Vec<_>) =
            hard.passes.into_iter().map(|pass| (pass.input, pass.logits.inner())).unzip();
        checks.floats(&self.array("sf_input_all"), "sf_input_all", Tensor::cat(inputs, 1));
        // The first scale has no input: the student sees there what the teacher sees.
        logits.insert(0, hard.logits.inner().narrow(1, 0, self.tokens.scales().range(0).len()));
        checks.floats(&self.array("sf_logits_all"), "sf_logits_all", Tensor::cat(logits, 1));
        self.gradients(hard.total, false, checks);
        Ok(())
    }

    /// Compares the norms of the gradients of a loss, and of all together if the case has it.
    fn gradients(&self, loss: Tensor<1>, with_total: bool, checks: &mut Checks<'_>) {
        let found = Gradients::of(&self.transformer, &loss.backward(), &FlexVar::keys(self.transformer.config()));
        let norm = |array: &Array| array.values.iter().map(|x| x * x).sum::<f64>().sqrt();
        let names: Vec<String> = self.case.get("/config/grad_norm_params");
        let mut norms: Vec<f64> = names.iter().map(|key| found.get(key).flatten().map_or(0.0, norm)).collect();
        if with_total {
            norms.push(found.norm());
        }
        let name = self.array("grad_norms");
        if self.case.has(&name) {
            checks.array(&name, "grad_norms", Array { shape: vec![norms.len()], values: norms });
        }
        let bias = self.array("grad_head_bias");
        if let (true, Some(Some(gradient))) = (self.case.has(&bias), found.get("head.bias")) {
            let gradient = Array { shape: gradient.shape.clone(), values: gradient.values.clone() };
            checks.array(&bias, "grad_head_bias", gradient);
        }
    }
}
