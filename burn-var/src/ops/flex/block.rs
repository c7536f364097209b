//! Blocks of a matrix product whose sums stay in vector registers, for AVX-512, AVX2 and NEON, through `pulp`.

use pulp::{Simd, WithSimd};

/// Maximum number of rows of a block. With two vectors per row of 16 registers, or four of 32, sums take three quarters
/// of the registers.
pub(super) const ROWS: usize = 6;
/// Multiple of every CPU's vector length: rows of `b` of such a length have no remainder.
pub(super) const LANES: usize = 16;

/// Product `out = a b`, or `out += a b` to `accumulate`, of whole [`LANES`] of columns and any number of rows. Each
/// output is the sum of its products in order, each added as [`multiply_add`] does, whatever the other sizes.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) columns: usize,
    pub(super) a: *const f32,
    /// Stride between rows of `a`, and between terms.
    pub(super) a_strides: [usize; 2],
    pub(super) b: *const f32,
    pub(super) b_stride: usize,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    pub(super) accumulate: bool,
}

/// Returns the number of columns of a full block.
pub(super) const fn width<S: Simd>() -> usize {
    (if S::REGISTER_COUNT < 32 { 2 } else { 4 }) * S::F32_LANES
}

/// Returns the number of rows of the next block, given those left.
#[inline(always)]
pub(super) fn height(left: usize) -> usize {
    match left {
        ROWS.. => ROWS,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

impl Blocks {
    /// # Safety
    /// `a` and `b` must be valid for reads and `out` for writes at all positions of the product, and nothing else may
    /// access `out` meanwhile.
    #[inline(always)]
    pub(super) unsafe fn multiply<S: Simd>(self, simd: S) {
        debug_assert!(self.columns.is_multiple_of(LANES), "columns must be whole vectors");
        let mut row = 0;
        while row < self.rows {
            let a = self.a.wrapping_add(row * self.a_strides[0]);
            let out = self.out.wrapping_add(row * self.out_stride);
            let (height, rows) = (height(self.rows - row), Self { a, out, ..self });
            // SAFETY: guaranteed by the caller.
            unsafe {
                match height {
                    ROWS => rows.across::<S, ROWS>(simd),
                    4 => rows.across::<S, 4>(simd),
                    2 => rows.across::<S, 2>(simd),
                    _ => rows.across::<S, 1>(simd),
                }
            }
            row += height;
        }
    }

    /// Computes all columns of the first `R` rows.
    ///
    /// # Safety
    /// See [`Blocks::multiply`].
    #[inline(always)]
    unsafe fn across<S: Simd, const R: usize>(self, simd: S) {
        let mut column = 0;
        while column < self.columns {
            let (b, out) = (self.b.wrapping_add(column), self.out.wrapping_add(column));
            let block = Self { b, out, ..self };
            let left = self.columns - column;
            // SAFETY: guaranteed by the caller.
            let vectors = unsafe {
                match left / S::F32_LANES {
                    4.. if width::<S>() == 4 * S::F32_LANES => block.fill::<S, R, 4>(simd),
                    2.. => block.fill::<S, R, 2>(simd),
                    _ => block.fill::<S, R, 1>(simd),
                }
            };
            column += vectors * S::F32_LANES;
        }
    }

    /// Computes `R` rows of `C` vectors, and returns `C`.
    ///
    /// # Safety
    /// See [`Blocks::multiply`].
    #[inline(always)]
    unsafe fn fill<S: Simd, const R: usize, const C: usize>(&self, simd: S) -> usize {
        let mut sums = [[simd.splat_f32s(0.0); C]; R];
        let (mut a, mut b) = (self.a, self.b);
        for _ in 0..self.depth {
            // SAFETY: a term of these rows and columns.
            unsafe {
                let b = b.cast::<[S::f32s; C]>().read_unaligned();
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = simd.splat_f32s(*a.wrapping_add(row * self.a_strides[0]));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = multiply_add(simd, a, b, *sum);
                    }
                }
            }
            a = a.wrapping_add(self.a_strides[1]);
            b = b.wrapping_add(self.b_stride);
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let out = self.out.wrapping_add(row * self.out_stride).cast::<[S::f32s; C]>();
            // SAFETY: these columns of a row of the output.
            unsafe {
                let sums = match self.accumulate {
                    true => {
                        let old = out.read_unaligned();
                        core::array::from_fn(|c| simd.add_f32s(old[c], sums[c]))
                    }
                    false => sums,
                };
                out.write_unaligned(sums);
            }
        }
        C
    }
}

/// Computes `a b + c` with one rounding; in WebAssembly, which has no such instruction, with two: a call for every number
/// would take most of the time there.
#[inline(always)]
fn multiply_add<S: Simd>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
    match cfg!(target_family = "wasm") {
        true => simd.mul_add_e_f32s(a, b, c),
        false => simd.mul_add_f32s(a, b, c),
    }
}

/// Runs a kernel with the widest vectors of the CPU.
#[inline]
pub(super) fn dispatch<W: WithSimd>(kernel: W) -> W::Output {
    pulp::Arch::new().dispatch(kernel)
}
