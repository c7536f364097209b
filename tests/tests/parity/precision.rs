//! Precisions in which the golden cases are compared, and the kinds that have a tolerance in each.

use burn_var::ops::Precision;

/// Kinds without a product that may be rounded, which keep the tolerance of the case in each precision: resizes, filters,
/// draws, the choice of phi, Scaled Spatial Guidance, measures.
pub(super) const EXACT: &[&str] =
    &["interp", "sampling", "phi_select", "frechet", "inception_score", "precision_recall", "ssg"];

/// Kinds whose numbers have a tolerance in each precision to the last one that is named. A transformer ends where a greedy
/// token flips, in `bf16`: all that follows is of another image. LPIPS ends where its gradients, of `1e-5`, are below the
/// numbers of `f16` that have all bits.
///
/// Not a rung: DINO's gradient of the image is a small rest of large terms, and is off by 170 roundings; cases that draw.
pub(super) const ROUNDED: &[(&str, Precision)] = &[
    ("vqvae", Precision::Bf16),
    ("checkpoints", Precision::Bf16),
    ("flexvae", Precision::Bf16),
    ("llamagen_vq", Precision::Bf16),
    ("var", Precision::F16),
    ("flexvar", Precision::F16),
    ("llamagen", Precision::F16),
    ("lpips", Precision::Tf32),
];

/// Returns the precision that the environment asks for.
pub(super) fn asked() -> Precision {
    let Ok(name) = std::env::var("BURN_VAR_PRECISION") else { return Precision::Exact };
    let found = Precision::ALL.into_iter().find(|precision| precision.name() == name);
    found.unwrap_or_else(|| panic!("BURN_VAR_PRECISION is `{name}`, expected one of {:?}", Precision::ALL))
}

/// Returns `true` if the cases of a kind have a tolerance in a precision.
pub(super) fn is_judged(kind: &str, precision: Precision) -> bool {
    let rounded = |last: Precision| precision as usize <= last as usize;
    precision == Precision::Exact
        || EXACT.contains(&kind)
        || ROUNDED.iter().any(|(name, last)| *name == kind && rounded(*last))
}
