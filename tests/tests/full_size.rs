//! The published sizes in full: names and shapes of the original's state dicts, written here from their specification and
//! not taken from our modules. The weights come from the recipe.

use std::sync::Mutex;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn_var::generation::ScaleInput;
use burn_var::models::var::{Var, VarConfig, VarPreset, VqVae, VqVaeConfig};
use burn_var::weights::{LoadOptions, Pretrained, StateDict, export};
use burn_var::{Condition, MapSize, NextScale, Scales, Tokenizer};
use burn_var_tests::weightgen::WeightGen;

type Entries = Vec<(String, Vec<usize>)>;

/// Runs one test at a time: each measures the memory of the process.
static ALONE: Mutex<()> = Mutex::new(());

fn add(entries: &mut Entries, key: &str, shape: &[usize]) {
    entries.push((key.to_owned(), shape.to_vec()));
}

/// Adds a weight, and a bias as long as the weight's first axis.
fn layer(entries: &mut Entries, key: &str, shape: &[usize]) {
    add(entries, &format!("{key}.weight"), shape);
    add(entries, &format!("{key}.bias"), &shape[..1]);
}

/// Lists the parameters and buffers of the transformer (`models/var.py`).
fn var_entries(config: &VarConfig) -> Entries {
    let (width, heads, tokens) = (config.embed_dim, config.num_heads, config.patch_nums.tokens());
    let mut entries = Vec::new();
    let e = &mut entries;
    add(e, "pos_start", &[1, 1, width]);
    add(e, "pos_1LC", &[1, tokens, width]);
    add(e, "lvl_1L", &[1, tokens]);
    add(e, "attn_bias_for_masking", &[1, 1, tokens, tokens]);
    layer(e, "word_embed", &[width, 32]);
    add(e, "class_emb.weight", &[1001, width]);
    add(e, "lvl_embed.weight", &[10, width]);
    if config.shared_aln {
        layer(e, "shared_ada_lin.1", &[6 * width, width]);
    }
    for i in 0..config.depth {
        let block = format!("blocks.{i}");
        add(e, &format!("{block}.attn.scale_mul_1H11"), &[1, heads, 1, 1]);
        for bias in ["q_bias", "v_bias", "zero_k_bias"] {
            add(e, &format!("{block}.attn.{bias}"), &[width]);
        }
        add(e, &format!("{block}.attn.mat_qkv.weight"), &[3 * width, width]);
        layer(e, &format!("{block}.attn.proj"), &[width, width]);
        layer(e, &format!("{block}.ffn.fc1"), &[4 * width, width]);
        layer(e, &format!("{block}.ffn.fc2"), &[width, 4 * width]);
        if config.shared_aln {
            add(e, &format!("{block}.ada_gss"), &[1, 1, 6, width]);
        } else {
            layer(e, &format!("{block}.ada_lin.1"), &[6 * width, width]);
        }
    }
    layer(e, "head_nm.ada_lin.1", &[2 * width, width]);
    layer(e, "head", &[4096, width]);
    entries
}

fn is_buffer(key: &str) -> bool {
    ["lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV"].iter().any(|end| key.ends_with(end))
}

fn parameters(entries: &Entries) -> usize {
    entries.iter().filter(|(key, _)| !is_buffer(key)).map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

/// Lists the parameters and buffers of the public tokenizer (`models/vqvae.py`).
fn vqvae_entries() -> Entries {
    const CHANNELS: [usize; 5] = [160, 160, 320, 320, 640];
    fn res_block(e: &mut Entries, key: &str, input: usize, output: usize) {
        layer(e, &format!("{key}.norm1"), &[input]);
        layer(e, &format!("{key}.conv1"), &[output, input, 3, 3]);
        layer(e, &format!("{key}.norm2"), &[output]);
        layer(e, &format!("{key}.conv2"), &[output, output, 3, 3]);
        if input != output {
            layer(e, &format!("{key}.nin_shortcut"), &[output, input, 1, 1]);
        }
    }
    fn attention(e: &mut Entries, key: &str) {
        layer(e, &format!("{key}.norm"), &[640]);
        layer(e, &format!("{key}.qkv"), &[1920, 640, 1, 1]);
        layer(e, &format!("{key}.proj_out"), &[640, 640, 1, 1]);
    }
    fn middle(e: &mut Entries, key: &str) {
        res_block(e, &format!("{key}.block_1"), 640, 640);
        attention(e, &format!("{key}.attn_1"));
        res_block(e, &format!("{key}.block_2"), 640, 640);
    }
    fn level(e: &mut Entries, key: &str, blocks: usize, channels: [usize; 2]) {
        for j in 0..blocks {
            res_block(e, &format!("{key}.block.{j}"), if j == 0 { channels[0] } else { channels[1] }, channels[1]);
            if key.ends_with('4') {
                attention(e, &format!("{key}.attn.{j}"));
            }
        }
    }
    let mut entries = Vec::new();
    let e = &mut entries;
    layer(e, "encoder.conv_in", &[160, 3, 3, 3]);
    for (i, &output) in CHANNELS.iter().enumerate() {
        level(e, &format!("encoder.down.{i}"), 2, [CHANNELS[i.saturating_sub(1)], output]);
        if i < 4 {
            layer(e, &format!("encoder.down.{i}.downsample.conv"), &[output, output, 3, 3]);
        }
    }
    middle(e, "encoder.mid");
    layer(e, "encoder.norm_out", &[640]);
    layer(e, "encoder.conv_out", &[32, 640, 3, 3]);
    layer(e, "decoder.conv_in", &[640, 32, 3, 3]);
    middle(e, "decoder.mid");
    for (i, &output) in CHANNELS.iter().enumerate() {
        level(e, &format!("decoder.up.{i}"), 3, [CHANNELS[(i + 1).min(4)], output]);
        if i > 0 {
            layer(e, &format!("decoder.up.{i}.upsample.conv"), &[output, output, 3, 3]);
        }
    }
    layer(e, "decoder.norm_out", &[160]);
    layer(e, "decoder.conv_out", &[3, 160, 3, 3]);
    add(e, "quantize.ema_vocab_hit_SV", &[10, 4096]);
    add(e, "quantize.embedding.weight", &[4096, 32]);
    for i in 0..4 {
        layer(e, &format!("quantize.quant_resi.qresi_ls.{i}"), &[32, 32, 3, 3]);
    }
    layer(e, "quant_conv", &[32, 32, 3, 3]);
    layer(e, "post_quant_conv", &[32, 32, 3, 3]);
    entries
}

/// Creates a file of these tensors, each computed when it is read.
fn file(entries: Entries, scales: &Scales) -> StateDict {
    let (recipe, levels) = (WeightGen::default(), scales.levels());
    StateDict::generated("full size", entries, move |key, shape| match key {
        "lvl_1L" => levels.iter().map(|level| *level as f32).collect(),
        _ => recipe.tensor(key, shape),
    })
    .expect("there are tensors")
}

/// Returns the peak memory in bytes since the last call with `reset`, or nothing where the system does not report it.
fn peak_memory(reset: bool) -> Option<usize> {
    if reset {
        std::fs::write("/proc/self/clear_refs", "5").ok()?;
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<usize>().ok()? * 1024)
}

/// Fails if loading took more memory than the weights once plus a few of the largest tensors.
fn assert_once_in_memory(before: Option<usize>, entries: &Entries) {
    let Some((before, after)) = before.zip(peak_memory(false)) else { return };
    let largest = entries.iter().map(|(_, shape)| shape.iter().product::<usize>()).max().unwrap_or(0);
    let allowed = 4 * (parameters(entries) + 4 * largest) + (64 << 20);
    let used = after.saturating_sub(before);
    assert!(used <= allowed, "loading took {} MB at its peak, allowed {} MB", used >> 20, allowed >> 20);
}

#[test]
fn d16_loads_strictly_and_runs() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let config = VarPreset::D16.config();
    let entries = var_entries(&config);
    assert_eq!(format!("{:.1}", parameters(&entries) as f64 / 1e6), "310.3", "million parameters");
    let dict = file(entries.clone(), &config.patch_nums);
    assert_eq!(Var::config_of(&dict, None).expect("sizes"), config, "sizes from the shapes");
    let device = Device::flex();
    let before = peak_memory(true);
    let model =
        Var::load_with(&dict, &config, LoadOptions::default(), &device).unwrap_or_else(|error| panic!("{error}"));
    assert_once_in_memory(before, &entries);

    let first = config.patch_nums.at(0);
    let mut state = model.start(&[Condition::Class(7)], &config.patch_nums).expect("a class");
    let input = ScaleInput { map: Tensor::zeros([1, 32, 1, 1], &device), ids: None };
    let hidden = model.embed(&state, first, input);
    let logits = model.step(&mut state, first, hidden).into_data().try_into_vec_as::<f32>().expect("logits");
    assert_eq!(logits.len(), 4096, "one logit per code");
    assert!(logits.iter().all(|logit| logit.is_finite()), "finite logits");
}

#[test]
fn the_public_tokenizer_loads_strictly_and_runs() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let entries = vqvae_entries();
    assert_eq!(entries.len(), 324, "entries of the public file");
    let elements: usize = entries.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(format!("{:.1}", elements as f64 / 1e6), "109.0", "million numbers, the counts of codes among them");
    let scales = Scales::square(&Scales::VAR_256).expect("a published scale schedule");
    let dict = file(entries.clone(), &scales);
    let config = VqVae::config_of(&dict, None).expect("sizes");
    assert_eq!(config, VqVaeConfig::public(scales), "sizes from the shapes");
    let device = Device::flex();
    let before = peak_memory(true);
    let model =
        VqVae::load_with(&dict, &config, LoadOptions::default(), &device).unwrap_or_else(|error| panic!("{error}"));
    assert_once_in_memory(before, &entries);
    assert_eq!(model.num_params(), 108_948_355, "parameters");

    // One token: the smallest image that passes through every layer.
    let one = Scales::new(vec![MapSize::square(1)]).expect("a scale schedule");
    let tokens = model.encode(Tensor::ones([1, 3, 16, 16], &device), &one).expect("tokens");
    assert_eq!(tokens.sequence().dims(), [1, 1], "one token");
    let image = model.decode(Tensor::ones([1, 32, 1, 1], &device));
    assert_eq!(image.dims(), [1, 3, 16, 16], "the image of one token");

    let finer = Scales::square(&Scales::VAR_512).expect("a published scale schedule");
    let finer = VqVae::config_of(&dict, Some(&finer)).expect("sizes");
    assert_eq!(finer.image_shape(), [3, 512, 512], "one file serves 512 pixels too");
}

#[test]
fn every_preset_has_the_originals_names_and_parameters() {
    let millions = ["310.3", "600.9", "1033.4", "2010.0", "2353.9"];
    for (preset, expected) in VarPreset::ALL.into_iter().zip(millions) {
        let config = preset.config();
        let entries = var_entries(&config);
        let found = format!("{:.1}", parameters(&entries) as f64 / 1e6);
        assert_eq!(found, expected, "million parameters of {}", preset.name());
        // Nothing is allocated: parameters stay uninitialized until they are read.
        let model = config.init_zeros(&Device::flex()).expect("a valid size");
        let ours = export(&model, &Var::keys(&config)).expect("parameters");
        let mut wanted: Entries = entries.into_iter().filter(|(key, _)| !is_buffer(key)).collect();
        wanted.sort();
        let found: Entries =
            ours.keys().map(|key| (key.to_owned(), ours.shape(key).unwrap_or_default().to_vec())).collect();
        assert_eq!(found, wanted, "names and shapes of {}", preset.name());
    }
}
