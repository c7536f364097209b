//! Two operations on a swapped tensor, fused: wrong where the last axis before the swap has length 1 and the one before it
//! is even. Cargo.toml: burn = { version = "=0.22.1", default-features = false, features = ["std", "wgpu", "fusion"] }
use burn::tensor::{Device, Int, Tensor};

fn main() {
    let device = Device::wgpu(Default::default());
    for dims in [[6, 5, 1], [6, 4, 1]] {
        let count = (dims[0] * dims[1]) as i64;
        let x = Tensor::<1, Int>::arange(0..count, &device).float().reshape(dims);
        let swapped = x.swap_dims(1, 2);
        let found = [swapped.clone() * 2.0, swapped + 1.0].map(|x| x.into_data().try_into_vec::<f32>().unwrap());
        // The swap leaves the numbers in their order.
        let numbers = || (0..count).map(|x| x as f32);
        let expected: [Vec<f32>; 2] = [numbers().map(|x| x * 2.0).collect(), numbers().map(|x| x + 1.0).collect()];
        println!("{dims:?}: {}", if found == expected { "right" } else { "WRONG" });
        println!("  found    {:?}\n  expected {:?}", &found[1][..8], &expected[1][..8]);
    }
}
