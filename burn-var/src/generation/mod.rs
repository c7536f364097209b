//! Generation, scale by scale: the traits that a model implements, and the one loop that drives it.
//!
//! Every way of making an image is this loop with other parts plugged in: a next-scale model that adds to its canvas
//! (VAR) or replaces it (FlexVAR), a next-token model (a schedule of single tokens, [`Scales::raster`]), tokens of
//! several binary choices ([`Vocabulary::symbols`]), a refinement of the last scale ([`NextScale::refine`]), the
//! rollout of adversarial training (on an autodiff device), and a teacher-forced model with guidance
//! ([`KnownTokens::all`](crate::editing::KnownTokens::all)).
//!
//! [`Scales::raster`]: crate::Scales::raster

mod condition;
mod generate;
mod next_scale;
mod request;
mod teacher_forced;
mod tokenizer;

pub use condition::Condition;
pub use generate::{Generated, Generation, ScaleDone, check_pair, generate};
pub use next_scale::{NextScale, ScaleInput, ScaleTokens, State, Vocabulary};
pub use request::BatchRequest;
pub use teacher_forced::{TeacherForced, TeacherInput};
pub use tokenizer::Tokenizer;
