use burn::module::Module;
use burn::nn::{Linear, LinearConfig, Relu};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use serde_json::json;

use super::*;
use crate::optim::{OptimConfig, StepRates, ema_update, no_decay_1d};

#[derive(Module, Debug)]
struct Mlp {
    first: Linear,
    second: Linear,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        Self { first: LinearConfig::new(3, 7).init(device), second: LinearConfig::new(7, 2).init(device) }
    }
}

struct Run {
    model: Mlp,
    average: Mlp,
    optimizer: AdamW,
}

const CONFIG: OptimConfig = OptimConfig {
    beta_1: 0.9,
    beta_2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.3,
    weight_decay_end: Some(0.1),
    clip_norm: Some(0.5),
};

impl Run {
    fn new(device: &Device) -> Self {
        let model = Mlp::new(device);
        Self { average: model.valid(), optimizer: CONFIG.init(&model, no_decay_1d), model }
    }

    #[allow(clippy::disallowed_methods, reason = "any layer will do")]
    fn step(self, step: u64, device: &Device) -> Self {
        let rows = (0..15).map(|i| ((i * 7 + step * 5) % 11) as f32 / 11.0 - 0.4).collect::<Vec<_>>();
        let x = Tensor::<1>::from_data(rows.as_slice(), device).reshape([5, 3]);
        let hidden = Relu::new().forward(self.model.first.forward(x));
        let loss = (self.model.second.forward(hidden) - 1.0).square().mean();
        let grads = GradientsParams::from_grads(loss.backward(), &self.model);
        let rates = StepRates { step, learning_rate: 0.02, weight_decay: CONFIG.weight_decay_at(step, 8) };
        let mut optimizer = self.optimizer;
        let (model, _) = optimizer.step(rates, self.model, grads).expect("finite gradients");
        Self { average: ema_update(self.average, &model, 0.9), model, optimizer }
    }

    fn parts(&self) -> Vec<Part<'_>> {
        vec![
            Part::module("model.bpk", &self.model),
            Part::module("ema.bpk", &self.average),
            Part::optimizer("optimizer.bpk", &self.optimizer),
        ]
    }

    fn load(checkpoint: &Checkpoint, device: &Device) -> Self {
        let model = checkpoint.module("model.bpk", Mlp::new(device)).expect("model");
        let average = checkpoint.module("ema.bpk", Mlp::new(device).valid()).expect("average");
        let optimizer = checkpoint.optimizer("optimizer.bpk", CONFIG.init(&model, no_decay_1d)).expect("optimizer");
        Self { model, average, optimizer }
    }
}

fn bits(mlp: &Mlp) -> Vec<u32> {
    let bits = |l: &Linear| {
        let bias = l.bias.as_ref().expect("bias").val();
        let all = Tensor::cat(vec![l.weight.val().flatten::<1>(0, 1).inner_or_self(), bias.inner_or_self()], 0);
        all.into_data().try_to_vec::<f32>().expect("f32").into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    [bits(&mlp.first), bits(&mlp.second)].concat()
}

trait InnerOrSelf {
    fn inner_or_self(self) -> Self;
}

impl InnerOrSelf for Tensor<1> {
    fn inner_or_self(self) -> Self {
        if self.is_autodiff() { self.inner() } else { self }
    }
}

fn byte_parts(fill: u8) -> Vec<Part<'static>> {
    vec![Part::bytes("a.bin", vec![fill; 5000]), Part::bytes("b.bin", vec![fill ^ 1; 77])]
}

fn step_of(dir: &CheckpointDir) -> Option<u64> {
    dir.latest().expect("readable").map(|c| c.step())
}

#[test]
fn a_resumed_run_equals_an_unbroken_one_to_the_bit() {
    let device = Device::flex().autodiff();
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = CheckpointDir::open(folder.path()).expect("open");
    let mut run = Run::new(&device);
    for step in 0..8 {
        if step == 3 {
            dir.save(step, &json!({ "seen": 15 }), run.parts()).expect("save");
        }
        run = run.step(step, &device);
    }
    let checkpoint = dir.latest().expect("readable").expect("there is one");
    assert_eq!(checkpoint.step(), 3, "the saved step");
    assert_eq!(checkpoint.state::<serde_json::Value>().expect("state")["seen"], 15, "the saved state");
    let mut resumed = Run::load(&checkpoint, &device);
    for step in 3..8 {
        resumed = resumed.step(step, &device);
    }
    assert_eq!(bits(&resumed.model), bits(&run.model), "weights after the resumed run");
    assert_eq!(bits(&resumed.average), bits(&run.average), "moving average after the resumed run");
    assert_ne!(bits(&resumed.average), bits(&resumed.model), "the average is not the model itself");

    let mut forgetful = Run::load(&checkpoint, &device);
    forgetful.optimizer = CONFIG.init(&forgetful.model, no_decay_1d);
    for step in 3..8 {
        forgetful = forgetful.step(step, &device);
    }
    assert_ne!(bits(&forgetful.model), bits(&run.model), "without the moments the run would be another");
}

#[test]
fn keeps_the_last_ones_and_saves_the_same_step_again() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = CheckpointDir::open(folder.path()).expect("open").keep_last(2);
    assert_eq!(step_of(&dir), None, "an empty folder has no checkpoint");
    for step in [5, 40, 7, 300, 300] {
        dir.save(step, &(), byte_parts(step as u8)).expect("save");
    }
    let kept = steps(folder.path()).expect("list").into_keys().collect::<Vec<_>>();
    assert_eq!(kept, [40, 300], "the two newest by step");
    assert_eq!(step_of(&dir), Some(300), "the newest");
    let left = names(folder.path()).expect("list");
    assert_eq!(left.len(), 3, "nothing else but the lock: {left:?}");
}

/// Every file cut at several lengths, altered, or gone: the one before is taken, and the damaged one is out of the way.
#[test]
fn a_damaged_checkpoint_is_passed_over() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("cut to nothing", |p| fs::write(p, b"").expect("write")),
        ("cut in half", |p| {
            let bytes = fs::read(p).expect("read");
            fs::write(p, &bytes[..bytes.len() / 2]).expect("write");
        }),
        ("one byte short", |p| {
            let bytes = fs::read(p).expect("read");
            fs::write(p, &bytes[..bytes.len() - 1]).expect("write");
        }),
        ("one bit flipped", |p| {
            let mut bytes = fs::read(p).expect("read");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(p, bytes).expect("write");
        }),
        ("removed", |p| fs::remove_file(p).expect("remove")),
    ];
    for file in ["a.bin", "b.bin", STATE, MANIFEST] {
        for (what, damage) in damages {
            let folder = tempfile::tempdir().expect("temporary folder");
            let dir = CheckpointDir::open(folder.path()).expect("open");
            dir.save(10, &json!({ "seed": 1 }), byte_parts(1)).expect("save");
            let newest = dir.save(20, &json!({ "seed": 2 }), byte_parts(2)).expect("save");
            damage(&newest.join(file));
            assert_eq!(step_of(&dir), Some(10), "{file} {what}");
            dir.save(30, &(), byte_parts(3)).expect("save");
            let kept = steps(folder.path()).expect("list").into_keys().collect::<Vec<_>>();
            assert_eq!(kept, [10, 30], "{file} {what}: the damaged one does not push out a good one");
        }
    }
}

#[test]
fn without_any_good_one_it_is_an_error_that_stays() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = CheckpointDir::open(folder.path()).expect("open");
    let path = dir.save(10, &(), byte_parts(1)).expect("save");
    fs::write(path.join("a.bin"), b"short").expect("damage");
    for attempt in 0..2 {
        let error = dir.latest().expect_err("nothing good is left").to_string();
        assert!(error.contains("a.bin") && error.contains("5 bytes"), "attempt {attempt} names the damage: {error}");
    }
}

/// The disk is full at each file in turn; what is left must be as before, and the next save must work.
#[test]
fn a_full_disk_leaves_the_last_good_one() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = CheckpointDir::open(folder.path()).expect("open");
    dir.save(10, &(), byte_parts(1)).expect("save");
    for (step, room) in [(20, 0), (20, 1), (20, 2), (10, 1)] {
        let mut written = 0;
        let mut write = |path: &Path, bytes: &[u8]| {
            if written == room {
                fs::write(path, &bytes[..bytes.len() / 2])?;
                return Err(io::ErrorKind::StorageFull.into());
            }
            written += 1;
            fs::write(path, bytes)
        };
        let error = dir.save_with(step, byte_parts(2).into_iter(), &mut write).expect_err("the disk is full");
        assert!(matches!(error, Error::Io { action: "write", .. }), "says what failed: {error}");
        assert_eq!(step_of(&dir), Some(10), "room for {room} files: the last good one");
        let bytes = dir.latest().expect("readable").expect("there").bytes("a.bin").expect("part");
        assert_eq!(bytes, vec![1; 5000], "room for {room} files: with its content");
        assert_eq!(names(folder.path()).expect("list").len(), 2, "room for {room} files: nothing half is left");
    }
    dir.save(20, &(), byte_parts(3)).expect("with room again");
    assert_eq!(step_of(&dir), Some(20), "the new one");
}

/// The files that a kill leaves at each point of a save, rebuilt by hand.
#[test]
fn leftovers_of_a_killed_save_are_cleared() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let root = folder.path();
    let dir = CheckpointDir::open(root).expect("open");
    let path = dir.save(10, &(), byte_parts(1)).expect("save");
    drop(dir);

    let half = root.join(format!("{TEMPORARY}step-00000020"));
    fs::create_dir(&half).expect("create");
    fs::write(half.join("a.bin"), b"half").expect("write");
    let dir = CheckpointDir::open(root).expect("killed while writing");
    assert!(!half.exists(), "the half is gone");
    assert_eq!(step_of(&dir), Some(10), "the good one is there");
    drop(dir);

    let replaced = root.join(format!("{REPLACED}step-00000010"));
    fs::rename(&path, &replaced).expect("rename");
    let dir = CheckpointDir::open(root).expect("killed between the two renames");
    assert_eq!(step_of(&dir), Some(10), "the replaced one came back");
    drop(dir);

    fs::create_dir(&replaced).expect("create");
    let dir = CheckpointDir::open(root).expect("killed while removing the replaced one");
    assert_eq!(step_of(&dir), Some(10), "the good one is there");
    assert!(!replaced.exists(), "the replaced one is gone");
}

#[test]
fn one_process_at_a_time_but_any_number_of_readers() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = CheckpointDir::open(folder.path()).expect("open");
    dir.save(10, &(), byte_parts(1)).expect("save");
    let error = CheckpointDir::open(folder.path()).expect_err("locked").to_string();
    assert!(error.contains("another process trains"), "says why: {error}");
    let read = Checkpoint::newest(folder.path()).expect("readable").expect("there");
    assert_eq!(read.parts().collect::<Vec<_>>(), ["a.bin", "b.bin", STATE], "readers need no lock");
    let error = read.bytes("c.bin").expect_err("no such part").to_string();
    assert!(error.contains("`c.bin`") && error.contains("a.bin"), "names what there is: {error}");
    drop(dir);
    CheckpointDir::open(folder.path()).expect("free again");
}

#[test]
fn unusable_places_and_names_are_named() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("file");
    fs::write(&file, b"").expect("write");
    let error = CheckpointDir::open(file.join("checkpoints")).expect_err("a file is no folder").to_string();
    assert!(error.contains("cannot create"), "says what failed: {error}");

    let dir = CheckpointDir::open(folder.path().join("run")).expect("open");
    for name in ["../evil", "a/b", "", MANIFEST] {
        dir.save(1, &(), vec![Part::bytes(name, vec![1])]).expect_err(name);
    }
    dir.save(1, &(), vec![Part::bytes("a", vec![1]), Part::bytes("a", vec![2])]).expect_err("the same name twice");
    assert_eq!(step_of(&dir), None, "nothing was saved");

    let device = Device::flex();
    dir.save(2, &(), vec![Part::module("model.bpk", &Mlp::new(&device))]).expect("save");
    let checkpoint = dir.latest().expect("readable").expect("there");
    let error = checkpoint.module("model.bpk", LinearConfig::new(3, 7).init(&device)).expect_err("another module");
    assert!(error.to_string().contains("another model configuration"), "says what to do: {error}");
}
