use serde::{Deserialize, Serialize};

use super::{Aid, Cfg, Guidance, Schedule, Ssg, SsgConfig, SsgOrder, Vpg, VpgConfig};
use crate::{Error, Result};

/// Settings of the parts of a guidance chain, by name. An injector has weights, so it is given to
/// [`GuidanceConfig::chain`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuidanceConfig {
    /// Classifier-free guidance.
    pub cfg: Schedule,
    /// Visual prefix guidance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpg: Option<VpgConfig>,
    /// Scaled Spatial Guidance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssg: Option<SsgConfig>,
}

impl GuidanceConfig {
    /// Returns the parts in their order: the injector, which acts on hidden states; Scaled Spatial Guidance of the
    /// branches, if its order says so; classifier-free guidance; visual prefix guidance of its result; and Scaled
    /// Spatial Guidance by default, whose prior then is the guided logits of the scale before.
    ///
    /// # Errors
    /// [`Error::Config`] for parts that contradict each other.
    pub fn chain(&self, aid: Option<Aid>) -> Result<Vec<Box<dyn Guidance>>> {
        let ssg = self.ssg.as_ref();
        let before = ssg.filter(|ssg| ssg.order != SsgOrder::PostCfg);
        if let (Some(ssg), Some(_)) = (before, &self.vpg) {
            let expected = "`post-cfg` beside vpg: before classifier-free guidance it would change one of the two \
                            predictions that vpg compares";
            return Err(Error::config("ssg order", ssg.order, expected));
        }
        let part = |ssg: &SsgConfig| Box::new(Ssg::new(ssg.clone())) as Box<dyn Guidance>;
        let mut chain: Vec<Box<dyn Guidance>> = Vec::new();
        chain.extend(aid.map(|aid| Box::new(aid) as Box<dyn Guidance>));
        chain.extend(before.map(part));
        chain.push(Box::new(Cfg::new(self.cfg.clone())));
        chain.extend(self.vpg.iter().map(|vpg| Box::new(Vpg::new(vpg.clone())) as Box<dyn Guidance>));
        chain.extend(ssg.filter(|ssg| ssg.order == SsgOrder::PostCfg).map(part));
        Ok(chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(config: &GuidanceConfig) -> Vec<&'static str> {
        config.chain(None).unwrap().iter().map(|part| part.name()).collect()
    }

    #[test]
    fn parts_are_in_order() {
        let cfg = Schedule::Ramp(1.5);
        let all = GuidanceConfig { cfg, vpg: Some(VpgConfig::paper(1.0)), ssg: Some(SsgConfig::paper(0.3)) };
        assert_eq!(names(&all), ["cfg", "vpg", "ssg"]);
        let ssg = SsgConfig { order: SsgOrder::PerBranch, ..SsgConfig::paper(0.3) };
        let before = GuidanceConfig { vpg: None, ssg: Some(ssg), ..all.clone() };
        assert_eq!(names(&before), ["ssg", "cfg"]);
        let both = GuidanceConfig { vpg: all.vpg, ..before };
        let error = both.chain(None).map(|chain| chain.len()).unwrap_err().to_string();
        assert!(error.contains("ssg order") && error.contains("vpg"), "{error}");
    }
}
