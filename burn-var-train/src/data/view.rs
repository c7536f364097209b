use serde::{Deserialize, Serialize};

use super::random::{Purpose, keyed};

/// The part of an image that is used: always the same, or a crop and mirroring drawn at random.
///
/// The draw depends on `seed`, `epoch` and the number of the image, not on the order in which images are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum View {
    /// The middle of the image, for evaluation and token caches.
    Fixed {
        /// Mirrors left and right.
        mirrored: bool,
    },
    /// A random part of the image, for training.
    Random {
        /// The seed of the run.
        seed: u64,
        /// The epoch, from 0.
        epoch: usize,
        /// Mirrors half of the images.
        mirror: bool,
    },
    /// The middle of the image, mirrored at random: post-training on whole images.
    Middle {
        /// The seed of the run.
        seed: u64,
        /// The epoch, from 0.
        epoch: usize,
        /// Mirrors half of the images.
        mirror: bool,
    },
}

/// A [`View`] of one image, with its random draws made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Drawn {
    pub(super) mirrored: bool,
    /// Position of the crop in the room that it has, vertically and horizontally, in units of 2^-32; `None`: the middle.
    crop: Option<[usize; 2]>,
}

impl View {
    pub(super) fn draw(self, image: usize) -> Drawn {
        match self {
            View::Fixed { mirrored } => Drawn { mirrored, crop: None },
            View::Random { seed, epoch, mirror } => {
                let mut rng = keyed(Purpose::View, seed, [epoch, image]);
                let crop = [(); 2].map(|()| rng.below(1 << 32));
                Drawn { mirrored: mirror && rng.below(2) == 1, crop: Some(crop) }
            }
            View::Middle { seed, epoch, mirror } => {
                Drawn { crop: None, ..View::Random { seed, epoch, mirror }.draw(image) }
            }
        }
    }
}

impl Drawn {
    /// The upper left corner of a crop that leaves `room` rows and columns out.
    pub(super) fn corner(self, room: [usize; 2]) -> [usize; 2] {
        match self.crop {
            None => room.map(|room| room / 2),
            Some(crop) => [0, 1].map(|axis| ((crop[axis] as u128 * (room[axis] as u128 + 1)) >> 32) as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_views_cover_all_corners_and_mirror_half() {
        let view = View::Random { seed: 3, epoch: 0, mirror: true };
        let mut seen = [[0; 3]; 2];
        let mut mirrored = 0;
        for image in 0..3000 {
            let drawn = view.draw(image);
            let [top, left] = drawn.corner([1, 2]);
            seen[0][top] += 1;
            seen[1][left] += 1;
            mirrored += usize::from(drawn.mirrored);
        }
        assert!((1380..1620).contains(&mirrored), "{mirrored} of 3000 mirrored");
        assert!(seen[0][..2].iter().all(|n| (1380..1620).contains(n)), "rows {:?}", seen[0]);
        assert!(seen[1].iter().all(|n| (890..1110).contains(n)), "columns {:?}", seen[1]);
    }

    #[test]
    fn the_middle_of_an_image_is_mirrored_as_its_random_views_are() {
        for image in 0..50 {
            let random = View::Random { seed: 3, epoch: 2, mirror: true }.draw(image);
            let middle = View::Middle { seed: 3, epoch: 2, mirror: true }.draw(image);
            assert_eq!((middle.corner([6, 9]), middle.mirrored), ([3, 4], random.mirrored));
        }
    }

    #[test]
    fn a_view_depends_on_seed_epoch_and_image_only() {
        let view = View::Random { seed: 3, epoch: 1, mirror: true };
        assert_eq!(view.draw(9), view.draw(9), "the same draw again");
        assert_ne!(view.draw(9), view.draw(10), "another image");
        assert_ne!(view.draw(9), View::Random { seed: 3, epoch: 2, mirror: true }.draw(9), "another epoch");
        assert_ne!(view.draw(9), View::Random { seed: 4, epoch: 1, mirror: true }.draw(9), "another seed");
        let never = View::Random { seed: 3, epoch: 1, mirror: false };
        assert!((0..100).all(|image| !never.draw(image).mirrored), "mirroring is off");
    }

    #[test]
    fn the_fixed_view_is_the_middle() {
        let drawn = View::Fixed { mirrored: true }.draw(4);
        assert!(drawn.mirrored, "mirrored as asked");
        assert_eq!(drawn.corner([5, 8]), [2, 4], "half of the room on each side");
    }
}
