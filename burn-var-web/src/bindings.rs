//! Functions and types that JavaScript sees.

use std::cell::RefCell;
use std::io;
use std::ops::Range;

use burn_var::Error;
use burn_var::weights::StateDict;
use image::RgbImage;
use js_sys::{Array, Function, Promise, Reflect, Uint8Array, Uint8ClampedArray};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

use crate::{Canvas, Model, Stage, Wanted};

/// Name of the global variable with the text of a panic, after which the module is of no use.
const PANIC: &str = "burnVarPanic";

#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|panic| {
        // There is nobody left to tell if this fails.
        let _ = Reflect::set(&js_sys::global(), &PANIC.into(), &panic.to_string().into());
    }));
}

thread_local! {
    /// The functions `read` of the files of the model that is being loaded.
    static FILES: RefCell<Vec<(JsValue, Function)>> = const { RefCell::new(Vec::new()) };
}

/// Opens a file of JavaScript.
fn open(file: JsValue) -> Result<StateDict, JsError> {
    let get = |key: &str| Reflect::get(&file, &key.into()).unwrap_or_default();
    let (name, size) = (get("name").as_string(), get("size").as_f64());
    let (Some(name), Some(size), Ok(read)) = (name, size, get("read").dyn_into::<Function>()) else {
        return Err(JsError::new("a file is an object with `name`, `size` and `read`"));
    };
    let index = FILES.with_borrow_mut(|files| {
        files.push((file, read));
        files.len() - 1
    });
    Ok(StateDict::from_safetensors_with(name, size as u64, move |range| read_range(index, range))?)
}

/// Reads bytes of a file.
fn read_range(index: usize, range: Range<u64>) -> io::Result<Vec<u8>> {
    let (file, read) = FILES.with_borrow(|files| files.get(index).cloned()).ok_or(io::ErrorKind::NotFound)?;
    let bytes = read.call2(&file, &JsValue::from(range.start as f64), &JsValue::from(range.end as f64));
    let bytes = bytes.and_then(JsCast::dyn_into::<Uint8Array>);
    bytes.map(|bytes| bytes.to_vec()).map_err(|error| io::Error::other(text(&error)))
}

/// Returns the message of an exception.
fn text(error: &JsValue) -> String {
    error.dyn_ref::<js_sys::Error>().map_or_else(|| format!("{error:?}"), |error| String::from(error.message()))
}

/// A model, for JavaScript.
#[wasm_bindgen(js_name = Model)]
pub struct JsModel(Model);

#[wasm_bindgen(js_class = Model)]
impl JsModel {
    /// Loads a model from files, each an object with `name`, `size` in bytes and `read(start, end)`, which returns a
    /// `Uint8Array` of these bytes at once. Weights are read tensor by tensor.
    ///
    /// # Errors
    /// Returns the errors of [`Model::new`].
    #[wasm_bindgen(constructor)]
    pub fn new(files: &Array) -> Result<Self, JsError> {
        let dicts = files.iter().map(open).collect::<Result<Vec<_>, JsError>>();
        let model = dicts.and_then(|dicts| Ok(Self(Model::new(&dicts)?)));
        FILES.with_borrow_mut(Vec::clear);
        model
    }

    /// Describes the model, as JSON.
    ///
    /// # Errors
    /// None in practice: numbers and names are JSON.
    pub fn describe(&self) -> Result<String, JsError> {
        Ok(serde_json::to_string(&self.0.description())?)
    }

    /// Generates images. `wanted` is [`Wanted`] as JSON. To change an image, `pixels` are its red, green and blue bytes,
    /// row by row, `width` the length of a row, and `redraw` is [`Canvas::redraw`].
    ///
    /// After each stage calls `show(number, images)` with an array of `Uint8ClampedArray`, red, green, blue and alpha of
    /// each pixel, and waits for the promise that it returns. Stops if that is false; returns false in that case.
    ///
    /// # Errors
    /// Returns the errors of [`Model::generate`].
    pub async fn generate(
        &self,
        wanted: String,
        pixels: Option<Vec<u8>>,
        width: u32,
        redraw: Vec<u8>,
        show: Function,
    ) -> Result<bool, JsError> {
        let wanted: Wanted = serde_json::from_str(&wanted)?;
        let canvas = pixels.map(|pixels| canvas(pixels, width, redraw)).transpose()?;
        let show = async |stage: Stage| {
            let images: Array = stage.images.iter().map(rgba).collect();
            let failed = |error: JsValue| Error::device("show an image")(text(&error));
            let answer = show.call2(&JsValue::NULL, &JsValue::from(stage.number as u32), &images).map_err(failed)?;
            let answer = JsFuture::from(Promise::resolve(&answer)).await.map_err(failed)?;
            Ok::<bool, Error>(answer.is_truthy())
        };
        Ok(self.0.generate(&wanted, canvas.as_ref(), show).await?)
    }
}

/// Creates a canvas from bytes.
fn canvas(pixels: Vec<u8>, width: u32, redraw: Vec<u8>) -> burn_var::Result<Canvas> {
    let (length, row) = (pixels.len(), 3 * width.max(1) as usize);
    let image = RgbImage::from_raw(width, (length / row) as u32, pixels).filter(|_| length.is_multiple_of(row));
    let expected = format!("whole rows of {width} pixels");
    let image = image.ok_or_else(|| Error::config("number of bytes of the image", length, expected))?;
    Ok(Canvas { image, redraw })
}

/// Converts an image to what a canvas element takes.
fn rgba(image: &RgbImage) -> Uint8ClampedArray {
    let bytes: Vec<u8> = image.pixels().flat_map(|pixel| [pixel[0], pixel[1], pixel[2], 255]).collect();
    Uint8ClampedArray::from(bytes.as_slice())
}
