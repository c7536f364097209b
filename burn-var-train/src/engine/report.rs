//! The log of a run: one JSON object per line, which a resumed run continues as if it had never stopped.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// An open log. Every record has a `step`: how many steps were done when it was written.
#[derive(Debug)]
pub struct RunLog {
    path: PathBuf,
    file: File,
}

#[derive(Serialize)]
struct Record<'a, T> {
    step: u64,
    #[serde(flatten)]
    fields: &'a T,
}

#[derive(Deserialize)]
struct StepOnly {
    step: u64,
}

impl RunLog {
    /// Opens or creates the log of a run that resumes after `done` steps. Records of later steps are cut off, and so is a
    /// line that a kill left unfinished.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] naming a line in the middle that is not a record.
    pub fn open(path: impl Into<PathBuf>, done: u64) -> Result<Self> {
        let path = path.into();
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let keep = length_until(&path, &file, done)?;
        file.set_len(keep).and_then(|()| file.seek(SeekFrom::Start(keep))).map_err(Error::io("write", &path))?;
        Ok(Self { path, file })
    }

    /// Appends a record and hands it to the system, so that it outlives a kill of this process.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] if `fields` is not an object.
    pub fn write(&mut self, step: u64, fields: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(&Record { step, fields })
            .map_err(|e| Error::format(&self.path, format!("a record cannot be written: {e}")))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io("write", &self.path))
    }

    /// Waits until the device has the log. Call it before a checkpoint is saved: then no crash can leave a checkpoint
    /// whose log is missing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("write", &self.path))
    }
}

/// Reads all records of a log, without an unfinished last line.
///
/// # Errors
/// [`Error::Io`], or [`Error::Format`] naming the line that is not a record.
pub fn read_log(path: impl AsRef<Path>) -> Result<Vec<Value>> {
    let path = path.as_ref();
    let text = fs::read(path).map_err(Error::io("read", path))?;
    let complete = text.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
    let lines = text[..complete].split_inclusive(|&b| b == b'\n').enumerate();
    lines.map(|(number, line)| serde_json::from_slice(line).map_err(|e| no_record(path, number, e))).collect()
}

fn length_until(path: &Path, file: &File, done: u64) -> Result<u64> {
    let mut reader = BufReader::new(file);
    let (mut length, mut line) = (0, Vec::new());
    for number in 0.. {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(Error::io("read", path))?;
        if line.last() != Some(&b'\n') {
            break;
        }
        let record: StepOnly = serde_json::from_slice(&line).map_err(|e| no_record(path, number, e))?;
        if record.step > done {
            break;
        }
        length += line.len() as u64;
    }
    Ok(length)
}

fn no_record(path: &Path, line: usize, error: serde_json::Error) -> Error {
    Error::format(path, format!("line {} is no record ({error}); remove the line to go on", line + 1))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn write(path: &Path, from: u64, to: u64) {
        let mut log = RunLog::open(path, from).expect("open");
        for step in from + 1..=to {
            log.write(step, &json!({ "loss": 1.0 / step as f64, "scales": [step, 2] })).expect("write");
        }
        log.sync().expect("sync");
    }

    #[test]
    fn a_resumed_log_equals_an_unbroken_one() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (whole, broken) = (folder.path().join("whole.jsonl"), folder.path().join("broken.jsonl"));
        write(&whole, 0, 12);
        write(&broken, 0, 9);
        // The last checkpoint was at 6, and the kill came in the middle of a line.
        let mut file = OpenOptions::new().append(true).open(&broken).expect("open");
        file.write_all(b"{\"step\":10,\"lo").expect("half a line");
        assert_eq!(read_log(&broken).expect("readable").len(), 9, "an unfinished line is not read");
        write(&broken, 6, 12);
        let read = |path| fs::read_to_string(path).expect("read");
        assert_eq!(read(&broken), read(&whole), "the resumed log equals the unbroken one");
        let records = read_log(&whole).expect("readable");
        assert_eq!((records.len(), &records[11]["step"]), (12, &json!(12)), "every record reads back");
        write(&whole, 0, 1);
        assert_eq!(read_log(&whole).expect("readable").len(), 1, "a run that starts anew starts its log anew");
    }

    #[test]
    fn damage_in_the_middle_is_named() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("log.jsonl");
        write(&path, 0, 2);
        fs::write(&path, fs::read_to_string(&path).expect("read").replacen("}", "", 1)).expect("damage");
        for error in [RunLog::open(&path, 2).expect_err("damaged"), read_log(&path).expect_err("damaged")] {
            assert!(error.to_string().contains("line 1"), "names the line: {error}");
        }
        RunLog::open(folder.path(), 0).expect_err("a folder is no log");
        let mut log = RunLog::open(folder.path().join("new.jsonl"), 0).expect("open");
        log.write(1, &5).expect_err("a number is no object");
    }
}
