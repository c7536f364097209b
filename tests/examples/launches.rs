//! Counts the kernel launches of one image and of one training step, for the tables of docs/gpu.md.
//!
//! `cargo run -p burn-var-tests --no-default-features --features wgpu --example launches -- [--no-fusion] [DEPTH [WIDTH]]`

use burn::tensor::Device;
use burn_var::Scales;
use burn_var::gpu::GpuSettings;
use burn_var_tests::launches::{Launches, Models, total};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (flags, numbers): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|it| it.starts_with("--"));
    GpuSettings { fusion: !flags.contains(&"--no-fusion".into()), ..GpuSettings::default() }.apply()?;
    let number = |at: usize, default: usize| numbers.get(at).map_or(Ok(default), |it| it.parse());
    let models = Models::new(
        number(0, 2)?,
        number(1, 128)?,
        Scales::square(&Scales::VAR_256)?,
        &Device::wgpu(Default::default()),
    )?;

    let (scales, tokens) = models.generation()?;
    let each: Vec<usize> = scales.iter().map(total).collect();
    println!("one image with guidance: {} launches, {each:?} by scale", each.iter().sum::<usize>());
    println!("(sum of its tokens: {})", tokens.iter().map(|id| u64::from(*id)).sum::<u64>());
    show(&sum(scales.iter()));
    if !flags.contains(&"--no-decode".into()) {
        println!("decoding: {} launches", total(&models.decode()));
    }
    if flags.contains(&"--no-training".into()) {
        return Ok(());
    }

    let (parts, loss) = models.training_step()?;
    println!("one training step: {} launches (loss {loss:.6})", parts.iter().map(|(_, it)| total(it)).sum::<usize>());
    for (name, launches) in &parts {
        println!("  {name}: {}", total(launches));
        show(launches);
    }
    Ok(())
}

fn sum<'a>(all: impl Iterator<Item = &'a Launches>) -> Launches {
    let mut sum = Launches::new();
    all.flatten().for_each(|(name, count)| *sum.entry(name.clone()).or_default() += count);
    sum
}

fn show(launches: &Launches) {
    let mut rows: Vec<_> = launches.iter().collect();
    rows.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    rows.into_iter().take(16).for_each(|(name, count)| println!("    {count:6} {name}"));
}
