//! Vector code: functions compiled once per instruction set, and the scalar functions they inline.
//!
//! The transcendental functions use fused multiply-add on CPUs that have it, which takes a third less time; other code
//! uses it only where it calls `mul_add`. Their results differ only between CPUs with and without it.

/// Defines functions whose body is compiled for AVX-512, for AVX2 and for the baseline, and selects one at run time.
/// Functions that the body calls must be `#[inline(always)]` to be compiled for the same instruction set. In the body,
/// the constant `FMA` is true if the CPU has fused multiply-add.
macro_rules! vectorized {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn generic<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    generic::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    generic::<true>($($arg),*)
                }
                if $crate::ops::flex::simd::has_avx512() {
                    // SAFETY: the CPU has just been checked for these instructions.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            generic::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    )*};
}
pub(super) use vectorized;

/// Returns `true` if [`vectorized`] functions use 512-bit vectors, of which there are 32.
pub(in crate::ops::flex) fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

/// Returns `true` if `mul_add` is one instruction in [`vectorized`] functions; elsewhere it is a slow call.
pub(super) fn has_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let has = cfg!(target_arch = "aarch64");
    has
}

/// Largest number with a finite exponential.
const EXP_MAX: f32 = 88.722_83;
/// About `ln(f32::MIN_POSITIVE)`: below it the exponential is zero; there are no subnormal results.
const EXP_MIN: f32 = -87.336_54;

/// Computes `a b + c`, with one rounding if `FMA`.
#[inline(always)]
fn fused<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Evaluates a polynomial, given the coefficient of the highest power first.
#[inline(always)]
fn polynomial<const FMA: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    coefficients.into_iter().reduce(|sum, next| fused::<FMA>(sum, x, next)).unwrap_or(0.0)
}

/// Computes the exponential without branches, to 2 units in the last place.
///
/// `2^n * e^r` with `|r| <= ln(2) / 2` and the polynomial of the Cephes library (S. Moshier) for `e^r`.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    /// Adding it rounds to an integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const REST: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

    let shifted = fused::<FMA>(x, core::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fused::<FMA>(-n, LN_2_LOW, fused::<FMA>(-n, LN_2_HIGH, x));
    let y = fused::<FMA>(polynomial::<FMA, _>(r, REST), r * r, r) + 1.0;
    let y = f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23));

    let y = if x > EXP_MAX { f32::INFINITY } else { y };
    let y = if x < EXP_MIN { 0.0 } else { y };
    if x.is_nan() { x } else { y }
}

/// Computes `1 / (1 + exp(-x))`.
#[inline(always)]
pub(super) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// Computes the distribution function of the standard normal, to 3e-6 relative between -6 and 6.
///
/// `erfc(z) = t e^(-z^2 + P(t))`, `t = 1 / (1 + z / 2)`, with the Chebyshev fit of "Numerical Recipes" (section 6.2).
#[inline(always)]
pub(super) fn normal_cdf<const FMA: bool>(x: f32) -> f32 {
    const FIT: [f32; 10] = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_8,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];

    let z = x.abs() * core::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / fused::<FMA>(0.5, z, 1.0);
    // Not from `z`, whose rounding the exponential would magnify.
    let tail = 0.5 * t * exp::<FMA>(fused::<FMA>(-0.5 * x, x, polynomial::<FMA, _>(t, FIT)));
    if x > 0.0 { 1.0 - tail } else { tail }
}

/// Number of independent partial sums: enough to fill the vector units, and a fixed order of addition on every CPU.
const LANES: usize = 32;
/// Number of elements summed in `f32` before the total moves to `f64`.
const BLOCK: usize = 2048;

/// Sums `N` functions of two equally long slices, element by element, in a fixed order.
#[inline(always)]
pub(super) fn sums<const N: usize>(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> [f32; N]) -> [f64; N] {
    let mut total = [0.0; N];
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let mut lanes = [[0.0_f32; LANES]; N];
        let (a_full, a_rest) = a.as_chunks::<LANES>();
        let (b_full, b_rest) = b.as_chunks::<LANES>();
        for (a, b) in a_full.iter().zip(b_full) {
            for lane in 0..LANES {
                let terms = f(a[lane], b[lane]);
                for (sum, term) in lanes.iter_mut().zip(terms) {
                    sum[lane] += term;
                }
            }
        }
        for (lane, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
            let terms = f(a, b);
            for (sum, term) in lanes.iter_mut().zip(terms) {
                sum[lane] += term;
            }
        }
        for (total, lanes) in total.iter_mut().zip(&lanes) {
            *total += f64::from(fold(*lanes));
        }
    }
    total
}

/// Sums the lanes, adding halves to halves.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

vectorized! {
    pub(in crate::ops::flex) fn add(from: &[f32], to: &mut [f32]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    vectorized! {
        fn exp_all(x: &[f32], out: &mut [f32]) {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = exp::<FMA>(x);
            }
        }
    }

    #[test]
    fn exp_is_within_two_ulp_of_the_exact_value() {
        let x: Vec<f32> = (0..=1_760_000).map(|i| -87.3 + i as f32 * 1e-4).collect();
        let mut y = vec![0.0; x.len()];
        exp_all(&x, &mut y);
        for (&x, &y) in x.iter().zip(&y) {
            let exact = f64::from(x).exp();
            let ulp = f64::from((exact as f32).next_up() - exact as f32);
            for y in [y, exp::<false>(x)] {
                let error = (f64::from(y) - exact).abs() / ulp;
                assert!(error <= 2.0, "exp({x}) = {y}, exact {exact}: {error:.2} ulp");
            }
            let one = if has_fma() { exp::<true>(x) } else { exp::<false>(x) };
            assert_eq!(y.to_bits(), one.to_bits(), "exp({x}) differs between instruction sets");
        }
    }

    #[test]
    fn normal_cdf_keeps_its_bound() {
        // Phi at -6, -5.9, ... 6, from the complementary error function in f64 by its continued fraction or series.
        let phi = |x: f64| {
            let z = x.abs() / 2f64.sqrt();
            let erfc = if z < 2.0 {
                let terms = (0..80).scan(z, |term, n| {
                    let value = *term / f64::from(2 * n + 1);
                    *term *= -z * z / f64::from(n + 1);
                    Some(value)
                });
                1.0 - 2.0 / std::f64::consts::PI.sqrt() * terms.sum::<f64>()
            } else {
                let fraction = (1..200).rev().fold(z, |rest, n| z + f64::from(n) / 2.0 / rest);
                (-z * z).exp() / std::f64::consts::PI.sqrt() / fraction
            };
            if x > 0.0 { 1.0 - erfc / 2.0 } else { erfc / 2.0 }
        };
        for i in -600..=600 {
            let x = i as f32 / 100.0;
            let exact = phi(x.into());
            for found in [normal_cdf::<false>(x), normal_cdf::<true>(x)].map(f64::from) {
                assert!((found - exact).abs() <= 3e-6 * exact, "Phi({x}) = {found:e}, exact {exact:e}");
            }
        }
    }

    #[test]
    fn exp_at_the_edges() {
        edges(exp::<false>);
        edges(exp::<true>);
    }

    fn edges(exp: fn(f32) -> f32) {
        assert_eq!(exp(0.0), 1.0, "exp(0)");
        assert_eq!(exp(f32::NEG_INFINITY), 0.0, "exp(-inf)");
        assert_eq!(exp(-104.0), 0.0, "exp of a very negative number");
        assert_eq!(exp(f32::MIN), 0.0, "exp of the most negative number");
        assert_eq!(exp(89.0), f32::INFINITY, "exp beyond the range");
        assert_eq!(exp(f32::INFINITY), f32::INFINITY, "exp(inf)");
        assert!(exp(EXP_MAX).is_finite() && exp(EXP_MAX) > 3.4e38, "exp at the upper end is {}", exp(EXP_MAX));
        assert!(exp(EXP_MIN).is_normal() && exp(EXP_MIN) < 1.2e-38, "exp at the lower end is {}", exp(EXP_MIN));
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7fc0_01ff), f32::from_bits(0xff80_0001)] {
            assert!(exp(nan).is_nan(), "exp does not keep NaN ({:#x})", nan.to_bits());
        }
    }

    #[test]
    fn sums_cover_every_element_once() {
        for len in [0, 1, 31, 32, 33, 2047, 2048, 2049, 5000] {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let b = vec![2.0; len];
            let exact = (len * len.saturating_sub(1) / 2) as f64;
            assert_eq!(sums(&a, &b, |a, b| [a, b]), [exact, 2.0 * len as f64], "length {len}");
        }
    }
}
