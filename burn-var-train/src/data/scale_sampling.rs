//! Random scale schedules, for transformers that accept any.

use burn_var::rng::Rng;
use burn_var::{MapSize, Scales};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Rules for the scale schedule of a step, all of square maps. The default are the rules of FlexVAR for a last map of 16x16.
///
/// The draw depends on seed and step alone: all pieces of a step share a schedule, and a resumed run draws the same ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScaleSampling {
    /// Share of steps with the default schedule, that of the tokenizer; 1 draws nothing.
    pub default_share: f64,
    /// Sides of the first maps, which every schedule has.
    pub first: Vec<usize>,
    /// Ranges of sides between the first and the last, from each of which some are drawn.
    pub groups: Vec<SideGroup>,
    /// Side of the last map.
    pub last: usize,
    /// Thresholds of one uniform draw. Each that it exceeds removes a random map, neither one of the first nor the last.
    pub drop_above: Vec<f64>,
    /// Largest number of tokens of a schedule. While there are more, a random one of its last four maps is removed.
    pub max_tokens: usize,
    /// Never removes the last map. FlexVAR's released code may.
    pub keep_last: bool,
}

/// A range of sides, some of which are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SideGroup {
    /// Number of sides to draw, all different.
    pub count: usize,
    /// Smallest side.
    pub from: usize,
    /// Largest side.
    pub to: usize,
}

impl Default for ScaleSampling {
    fn default() -> Self {
        Self {
            default_share: 0.05,
            first: vec![1, 2],
            groups: vec![SideGroup { count: 5, from: 3, to: 10 }, SideGroup { count: 2, from: 11, to: 15 }],
            last: 16,
            drop_above: vec![0.9, 0.95, 0.98, 0.99],
            max_tokens: 680,
            keep_last: false,
        }
    }
}

impl ScaleSampling {
    /// Checks the rules, for images whose latent has size `latent`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, latent: MapSize) -> Result<()> {
        for (name, share) in std::iter::once(("scales.default_share", self.default_share))
            .chain(self.drop_above.iter().map(|threshold| ("scales.drop_above", *threshold)))
        {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::config(name, share, "a number in 0..=1"));
            }
        }
        if self.draws_nothing() {
            return Ok(());
        }
        let mut above = 0;
        for &side in &self.first {
            if side <= above {
                return Err(Error::config("scales.first", format!("{:?}", self.first), "growing sides, from 1"));
            }
            above = side;
        }
        for &group @ SideGroup { count, from, to } in &self.groups {
            if from <= above || to < from || count > to + 1 - from {
                let expected = format!("a range of at least `count` sides, all above {above}");
                return Err(Error::config("scales.groups", format!("{group:?}"), expected));
            }
            above = to;
        }
        let side = latent.height.min(latent.width);
        if self.last <= above || self.last > side {
            let expected = format!("a side above {above} and at most {side}, that of the images' latent");
            return Err(Error::config("scales.last", self.last, expected));
        }
        let least = tokens(&self.first) + self.last * self.last;
        if self.max_tokens < least {
            let expected = format!("at least {least}, the tokens of the first maps and the last");
            return Err(Error::config("scales.max_tokens", self.max_tokens, expected));
        }
        Ok(())
    }

    /// Returns the schedule of a step.
    ///
    /// # Errors
    /// [`burn_var::Error::Config`] for rules that [`ScaleSampling::validate`] refuses.
    pub fn draw(&self, default: &Scales, seed: u64, step: u64) -> Result<Scales> {
        let rng = &mut Rng::keyed(seed, "scale schedule", step, 0);
        if self.draws_nothing() || rng.uniform() < self.default_share {
            return Ok(default.clone());
        }
        let mut drawn = Vec::new();
        for SideGroup { count, from, to } in &self.groups {
            let order = rng.permutation((to + 1).saturating_sub(*from));
            drawn.extend(order.into_iter().take(*count).map(|offset| from + offset));
        }
        drawn.sort_unstable();
        let mut sides = [&self.first[..], &drawn, &[self.last]].concat();
        let first = self.first.len();
        let u = rng.uniform();
        for _ in self.drop_above.iter().filter(|threshold| u > **threshold) {
            let between = sides.len() - 1 - first;
            if between > 0 {
                sides.remove(first + rng.below(between));
            }
        }
        while tokens(&sides) > self.max_tokens {
            let end = sides.len() - usize::from(self.keep_last);
            let start = first.max(sides.len().saturating_sub(4));
            if start >= end {
                break;
            }
            sides.remove(start + rng.below(end - start));
        }
        Ok(Scales::square(&sides)?)
    }

    /// Returns all maps that a schedule can have, each once and the smallest first: what must be known of an image to
    /// train with any of them.
    ///
    /// # Errors
    /// [`burn_var::Error::Config`] for sides of 0.
    pub fn union(&self, default: &Scales) -> Result<Scales> {
        let mut sizes = default.sizes().to_vec();
        if !self.draws_nothing() {
            let grouped = self.groups.iter().flat_map(|group| group.from..=group.to);
            let sides = self.first.iter().copied().chain(grouped).chain([self.last]);
            sizes.extend(sides.map(MapSize::square));
        }
        sizes.sort_unstable_by_key(|size| (size.area(), size.height));
        sizes.dedup();
        Ok(Scales::new(sizes)?)
    }

    fn draws_nothing(&self) -> bool {
        self.default_share >= 1.0
    }
}

/// Number of tokens of square maps.
fn tokens(sides: &[usize]) -> usize {
    sides.iter().map(|side| side * side).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: u64 = 4000;

    fn default_scales() -> Scales {
        Scales::square(&Scales::VAR_256).unwrap()
    }

    fn drawn(rules: &ScaleSampling) -> impl Iterator<Item = Vec<usize>> {
        let default = default_scales();
        (0..STEPS).map(move |step| {
            let scales = rules.draw(&default, 7, step).unwrap();
            scales.sizes().iter().map(|size| size.width).collect()
        })
    }

    #[test]
    fn schedules_obey_the_rules_of_the_paper() {
        let rules = ScaleSampling::default();
        rules.validate(MapSize::square(16)).unwrap();
        let union = rules.union(&default_scales()).unwrap();
        assert_eq!(union, Scales::square(&(1..=16).collect::<Vec<_>>()).unwrap());
        let (mut default, mut without_last, mut shortened) = (0, 0, 0);
        for sides in drawn(&rules) {
            assert!(sides.is_sorted_by(|a, b| a < b), "sorted and distinct: {sides:?}");
            assert!(tokens(&sides) <= 680, "at most 680 tokens: {sides:?}");
            if sides == Scales::VAR_256 {
                default += 1;
                continue;
            }
            assert_eq!(sides[..2], [1, 2], "the first: {sides:?}");
            let within = |range: std::ops::RangeInclusive<usize>| sides.iter().filter(|s| range.contains(s)).count();
            assert!(within(3..=10) <= 5 && within(11..=15) <= 2 && within(17..=99) == 0, "groups: {sides:?}");
            without_last += u64::from(!sides.contains(&16));
            shortened += u64::from(sides.len() < 10);
        }
        assert!((120..290).contains(&default), "the default schedule in about 5 %: {default} of {STEPS}");
        assert!(without_last > 0, "the limit on tokens may remove the last, as released");
        assert!(shortened > without_last && shortened < STEPS, "some are shorter: {shortened}");
    }

    #[test]
    fn the_last_map_can_be_kept() {
        let rules = ScaleSampling { keep_last: true, ..ScaleSampling::default() };
        for sides in drawn(&rules) {
            assert_eq!(sides.last(), Some(&16), "{sides:?}");
            assert!(tokens(&sides) <= 680 && sides.is_sorted_by(|a, b| a < b), "{sides:?}");
        }
    }

    #[test]
    fn every_threshold_removes_a_map_between_first_and_last() {
        let rules = |drop_above: &[f64]| ScaleSampling {
            default_share: 0.0,
            max_tokens: 9999,
            drop_above: drop_above.to_vec(),
            ..ScaleSampling::default()
        };
        for (drop_above, length) in
            [(vec![], 10), (vec![0.0], 9), (vec![0.0; 3], 7), (vec![1.0], 10), (vec![0.0; 9], 3)]
        {
            for sides in drawn(&rules(&drop_above)) {
                assert_eq!(sides.len(), length, "{drop_above:?}: {sides:?}");
                assert_eq!((&sides[..2], sides[length - 1]), (&[1, 2][..], 16), "the ends stay: {sides:?}");
            }
        }
    }

    #[test]
    fn the_draw_depends_on_seed_and_step_alone() {
        let (rules, default) = (ScaleSampling::default(), default_scales());
        let draw = |seed, step| rules.draw(&default, seed, step).unwrap();
        assert_eq!(draw(1, 5), draw(1, 5));
        assert!((0..20).any(|step| draw(1, step) != draw(2, step)), "another seed");
        assert!((0..20).any(|step| draw(1, step) != draw(1, step + 1)), "another step");
        let fixed = ScaleSampling { default_share: 1.0, ..ScaleSampling::default() };
        assert!((0..50).all(|step| fixed.draw(&default, 1, step).unwrap() == default), "nothing is drawn");
        assert_eq!(fixed.union(&default).unwrap(), default, "and nothing else is needed");
        fixed.validate(MapSize::square(2)).unwrap();
    }

    #[test]
    fn impossible_rules_are_refused() {
        let paper = ScaleSampling::default;
        let group = |count, from, to| vec![SideGroup { count, from, to }];
        for (rules, field) in [
            (ScaleSampling { default_share: 1.5, ..paper() }, "default_share"),
            (ScaleSampling { drop_above: vec![-0.1], ..paper() }, "drop_above"),
            (ScaleSampling { first: vec![2, 1], ..paper() }, "first"),
            (ScaleSampling { first: vec![0], ..paper() }, "first"),
            (ScaleSampling { groups: group(3, 3, 4), ..paper() }, "groups"),
            (ScaleSampling { groups: group(1, 2, 4), ..paper() }, "groups"),
            (ScaleSampling { last: 15, ..paper() }, "last"),
            (ScaleSampling { last: 17, ..paper() }, "last"),
            (ScaleSampling { max_tokens: 260, ..paper() }, "max_tokens"),
        ] {
            let error = rules.validate(MapSize::square(16)).unwrap_err().to_string();
            assert!(error.contains(&format!("scales.{field}")), "names {field}: {error}");
        }
    }
}
