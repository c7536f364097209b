//! The golden cases in each precision, on the CPU, which rounds the inputs of products as a GPU would.

use burn::tensor::Device;
use burn_var::ops::Precision;
use burn_var_tests::checks::Checks;
use burn_var_tests::golden;

use super::READERS;

#[test]
#[ignore]
fn measure() {
    let device = Device::flex();
    let cases = golden::cases();
    for (kind, reader) in READERS {
        for precision in [Precision::Tf32, Precision::F16, Precision::Bf16] {
            let start = std::time::Instant::now();
            let mut worst = 0.0f64;
            let mut beyond = 0;
            let mut said = String::new();
            for case in cases.iter().filter(|case| case.kind() == *kind) {
                let mut checks = Checks::in_precision(case, precision);
                if let Err(error) = precision.scope(|| reader(case, &device, &mut checks)) {
                    checks.fail(format!("error: {error}"));
                }
                worst = worst.max(checks.worst());
                beyond += checks.beyond();
                if let Err(text) = checks.finish() {
                    let n = text.lines().count();
                    said += &format!(
                        "   {}: {n}: {}\n",
                        case.name(),
                        text.lines().take(3).collect::<Vec<_>>().join("\n      ")
                    );
                }
            }
            println!("{kind} {precision}: worst {worst:.3}, {beyond} beyond, {:?}\n{said}", start.elapsed());
        }
    }
}
