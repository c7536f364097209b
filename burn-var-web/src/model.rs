use burn::tensor::{Device, Tensor, TensorData};
use burn_var::editing::KnownTokens;
use burn_var::pipeline::{ModelFiles, Pipeline};
use burn_var::weights::StateDict;
use burn_var::{Error, MapSize, Result, TokenPyramid};
use image::RgbImage;

use crate::{Description, Wanted};

/// A loaded model.
pub struct Model {
    pipeline: Pipeline,
    weights: usize,
}

/// An image that is changed.
#[derive(Debug, Clone)]
pub struct Canvas {
    /// The image; it is resized and cropped to the model's size.
    pub image: RgbImage,
    /// One byte per pixel of the model's size, row by row: 0 where the image stays. Empty to generate the finer scales
    /// everywhere ([`Wanted::complete`]).
    pub redraw: Vec<u8>,
}

/// The images after a scale, or after a row of tokens of a next-token model.
#[derive(Debug)]
pub struct Stage {
    /// Number of the stage, from 0.
    pub number: usize,
    /// One per image wanted, of the model's size.
    pub images: Vec<RgbImage>,
}

/// Most bytes of weights in single precision: a page has 4 GiB, and the work needs some of it.
const MOST_BYTES: usize = 3 << 30;

impl Model {
    /// Loads a model from its files, in any order: tokenizer, transformer and, if it has one, injector, or one file that
    /// holds the first two.
    ///
    /// # Errors
    /// [`Error::Config`] if a part is missing, is there twice, or is none of them; [`Error::Unsupported`] if it is too large
    /// for a page; [`Error::Format`] and [`Error::Weights`] for files that are damaged or do not fit.
    pub fn new(dicts: &[StateDict]) -> Result<Self> {
        let weights: usize = dicts.iter().map(StateDict::num_elements).sum();
        if weights.saturating_mul(4) > MOST_BYTES {
            let what = format!("a model of {:.1} million weights in a page", weights as f64 / 1e6);
            let most = MOST_BYTES as f64 / 4e6;
            let hint = format!("there is room for {most:.0} million; generate with the command, or open a smaller one");
            return Err(Error::unsupported(what, hint));
        }
        let (transformer, injector) = (part(dicts, "transformer")?, part(dicts, "injector")?);
        let missing =
            |role| Error::config(format!("{role} among the files"), "missing", "a tokenizer and a transformer");
        let files = ModelFiles {
            tokenizer: part(dicts, "tokenizer")?.ok_or_else(|| missing("tokenizer"))?,
            transformer: transformer.ok_or_else(|| missing("transformer"))?,
            injector,
        };
        for dict in dicts {
            if !ROLES.iter().any(|role| plays(dict, role).unwrap_or(true)) {
                let found = format!("of another kind ({} tensors)", dict.len());
                return Err(Error::config(dict.origin().display().to_string(), found, ROLES.join(", ")));
            }
        }
        Ok(Self { pipeline: Pipeline::builder().files(files).device(&Device::flex()).build()?, weights })
    }

    /// Describes the model.
    pub fn description(&self) -> Description {
        Description::new(&self.pipeline, self.weights)
    }

    /// Generates images, and calls `show` after each stage; the last one has the results. Returns true after the last
    /// stage, and false if `show` returned false before it, which stops the generation.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::Label`] for settings that the model does not have; those of `show`.
    pub async fn generate<F>(&self, wanted: &Wanted, canvas: Option<&Canvas>, mut show: F) -> Result<bool>
    where
        F: AsyncFnMut(Stage) -> Result<bool>,
    {
        if wanted.count == 0 {
            return Err(Error::config("number of images", 0, "at least 1"));
        }
        let mut pipeline = self.pipeline.clone();
        pipeline.configure(&wanted.settings())?;
        let mut request = wanted.request();
        request.known = canvas.map(|canvas| self.known(wanted, canvas)).transpose()?;
        let mut steps = pipeline.steps(&request)?;
        let ends: Vec<usize> = pipeline.scales().stages().into_iter().map(|stage| stage.end).collect();
        while let Some(step) = steps.next_async().await? {
            if let Some(number) = ends.iter().position(|end| *end == step.k() + 1) {
                let more = show(Stage { number, images: step.images_async().await? }).await?;
                if !more && number + 1 < ends.len() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Returns the tokens of an image that are kept, for each image wanted.
    fn known(&self, wanted: &Wanted, canvas: &Canvas) -> Result<KnownTokens> {
        let [_, height, width] = self.pipeline.image_shape();
        let tokens = self.pipeline.encode(&canvas.image)?;
        let maps = (0..tokens.scales().len()).map(|k| tokens.map(k).repeat_dim(0, wanted.count)).collect();
        let tokens = TokenPyramid::new(tokens.scales().clone(), maps)?;
        if let Some(scales) = wanted.complete {
            let last = tokens.scales().len() - 1;
            return match (1..=last).contains(&scales) {
                true => Ok(KnownTokens::first(tokens, scales)),
                false => Err(Error::config("number of scales to keep", scales, format!("1 to {last}"))),
            };
        }
        if canvas.redraw.len() != height * width {
            let expected = format!("{width}x{height} pixels, the size of the model's images");
            return Err(Error::config("size of the mask", canvas.redraw.len(), expected));
        }
        let stays = canvas.redraw.iter().map(|redraw| if *redraw == 0 { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
        let stays: Tensor<4> =
            Tensor::from_data(TensorData::new(stays, [1, 1, height, width]), &self.pipeline.device());
        let known = KnownTokens::masked(tokens, stays.repeat_dim(0, wanted.count))?;
        if known.drawn()?.iter().all(|drawn| *drawn == 0) {
            let MapSize { height, width } = self.pipeline.scales().finest();
            let hint =
                format!("the mask covers less than half of every token, of which the image has {width}x{height}");
            return Err(Error::unsupported("redrawing nothing", hint));
        }
        Ok(known)
    }
}

/// Parts of a model, as [`Kind::role`](burn_var::weights::Kind::role) names them.
const ROLES: [&str; 3] = ["tokenizer", "transformer", "injector"];

/// Returns true if a file holds a part.
fn plays(dict: &StateDict, role: &str) -> Result<bool> {
    Ok(dict.models()?.iter().any(|model| model.kind().role == role))
}

/// Returns the file that holds a part, if any does.
fn part(dicts: &[StateDict], role: &str) -> Result<Option<StateDict>> {
    let mut found: Option<&StateDict> = None;
    for dict in dicts {
        if !plays(dict, role)? {
            continue;
        }
        if let Some(first) = found.replace(dict) {
            let both = format!("in `{}` and in `{}`", first.origin().display(), dict.origin().display());
            return Err(Error::config(role, both, "one"));
        }
    }
    Ok(found.cloned())
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use burn_var::prelude::*;

    use super::*;

    const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/fashion-mnist");

    fn file(name: &str) -> StateDict {
        StateDict::open(format!("{FOLDER}/{name}.safetensors")).unwrap()
    }

    fn model() -> Model {
        Model::new(&["transformer", "injector", "tokenizer"].map(file)).unwrap()
    }

    /// Runs a future that never waits for anything outside.
    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
        }
    }

    /// Generates to the end, and returns the images of all stages.
    fn run(model: &Model, wanted: &Wanted, canvas: Option<&Canvas>) -> Result<Vec<Vec<RgbImage>>> {
        let mut stages = Vec::new();
        let done = block_on(model.generate(wanted, canvas, async |stage: Stage| {
            assert_eq!(stage.number, stages.len(), "stages in order");
            stages.push(stage.images);
            Ok(true)
        }))?;
        assert!(done);
        Ok(stages)
    }

    #[test]
    fn images_are_those_of_the_pipeline() {
        let model = model();
        let wanted = Wanted { class: Some(9), count: 2, seed: 7, ..Wanted::default() };
        let stages = run(&model, &wanted, None).unwrap();
        let pipeline = Pipeline::from_pretrained(FOLDER).unwrap();
        assert_eq!(stages.len(), model.description().stages);
        assert_eq!(stages[5], pipeline.generate(&Request::classes([9; 2]).seed(7)).unwrap());

        let plain = Wanted { cfg: Some(1.0), top_k: Some(50), without_injector: true, ..wanted };
        let builder = Pipeline::builder().model(FOLDER).without_injector();
        let pipeline = builder
            .settings(Settings { cfg_strength: Some(1.0), top_k: Some(50), ..Settings::default() })
            .build()
            .unwrap();
        let images = pipeline.generate(&Request::classes([9; 2]).seed(7)).unwrap();
        assert_eq!(run(&model, &plain, None).unwrap()[5], images, "settings");
        assert_ne!(stages[5], images);
    }

    #[test]
    fn it_stops_between_stages() {
        let wanted = Wanted { count: 1, ..Wanted::default() };
        let mut seen = Vec::new();
        let done = block_on(model().generate(&wanted, None, async |stage: Stage| {
            seen.push(stage.number);
            Ok(stage.number < 2)
        }));
        assert_eq!((done.unwrap(), seen), (false, vec![0, 1, 2]));
    }

    #[test]
    fn an_image_is_changed_where_the_mask_says() {
        let model = model();
        let wanted = Wanted { class: Some(4), count: 1, seed: 3, ..Wanted::default() };
        let image = run(&model, &wanted, None).unwrap()[5][0].clone();
        let canvas = |redraw| Canvas { image: image.clone(), redraw };
        let change = |seed, canvas: &Canvas| run(&model, &Wanted { seed, ..wanted.clone() }, Some(canvas));
        let top = canvas((0..32 * 32).map(|i| u8::from(i < 16 * 32)).collect::<Vec<u8>>());
        let [one, other] = [5, 6].map(|seed| change(seed, &top).unwrap()[5][0].clone());
        // A pixel of the decoder sees tokens around it, too.
        let difference = |rows: std::ops::Range<u32>| {
            let pixels = rows.flat_map(|y| (0..32).map(move |x| (x, y)));
            pixels.map(|at| u32::from(one[at][0].abs_diff(other[at][0]))).sum::<u32>()
        };
        let (top, bottom) = (difference(0..12), difference(20..32));
        assert!(top > 2 * bottom, "two seeds differ by {top} in the new part, and by {bottom} in the rest");

        let message = |canvas: &Canvas| change(5, canvas).unwrap_err().to_string();
        assert!(message(&canvas(vec![0; 32 * 32])).contains("less than half"), "nothing to draw");
        assert!(message(&canvas(vec![1; 7])).contains("32x32"), "a mask of another size");
    }

    #[test]
    fn coarse_scales_are_completed() {
        let model = model();
        let wanted = Wanted { class: Some(4), count: 2, seed: 3, complete: Some(4), ..Wanted::default() };
        let image = RgbImage::from_fn(32, 32, |x, y| image::Rgb([(x * 4 + y * 4) as u8; 3]));
        let canvas = Canvas { image, redraw: Vec::new() };
        let stages = run(&model, &wanted, Some(&canvas)).unwrap();
        assert_eq!(stages[3][0], stages[3][1], "kept scales");
        assert_ne!(stages[5][0], stages[5][1], "generated scales");
        let error = run(&model, &Wanted { complete: Some(6), ..wanted }, Some(&canvas)).unwrap_err().to_string();
        assert!(error.contains("1 to 5"), "{error}");
    }

    #[test]
    fn files_that_make_no_model_are_named() {
        let message = |dicts: &[StateDict]| Model::new(dicts).err().expect("no model").to_string();
        assert!(message(&[file("tokenizer")]).contains("`transformer among the files` is missing"));
        let twice = message(&["tokenizer", "transformer", "tokenizer"].map(file));
        assert!(twice.contains("in `") && twice.contains("expected one"), "{twice}");
        let other = message(&["tokenizer", "transformer", "classifier"].map(file));
        assert!(other.contains("classifier.safetensors"), "{other}");
        let shape = vec![1 << 15, 1 << 15];
        let large = StateDict::generated("large", [("a".to_owned(), shape)], |_, _| Vec::new()).unwrap();
        let message = message(&[large]);
        assert!(message.contains("1073.7 million") && message.contains("805 million"), "{message}");
        assert!(!Model::new(&["tokenizer", "transformer"].map(file)).unwrap().description().injector);
    }

    #[test]
    fn settings_that_do_not_fit_are_named() {
        let model = model();
        let wanted = Wanted { class: Some(4), count: 1, ..Wanted::default() };
        let message = |wanted: &Wanted| run(&model, wanted, None).unwrap_err().to_string();
        assert!(message(&Wanted { class: Some(10), ..wanted.clone() }).contains("class label 10"));
        assert!(message(&Wanted { temperature: Some(0.0), ..wanted.clone() }).contains("temperature"));
        assert!(message(&Wanted { count: 0, ..wanted }).contains("number of images"));
    }
}
