//! Data-parallel training: processes, on one machine or on several, that compute the pieces of a run's batches together.
//!
//! Every rank has a copy of the networks and computes its pieces of each batch. Gradients are added in the order of the
//! ranks, so all copies stay equal to the bit, and `N` ranks with one piece each end with the weights of one process with
//! `accumulate = N`. Rank 0 alone writes: log, samples, checkpoints, the model.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use super::portable::{Packet, Portable};
use crate::{Error, Result};

/// Time that ranks wait for one another at the start.
const PATIENCE: Duration = Duration::from_secs(600);
/// Time between attempts to reach a rank that does not listen yet.
const RETRY: Duration = Duration::from_millis(100);
/// Silence after which the system asks whether the other machine is still there, and time between its questions.
const KEEPALIVE: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(10)];

/// The first bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data = 0x64,
    /// The rank stops. The frame holds the rank that is the cause, and the reason.
    Abort = 0x61,
}

/// The ranks of a run, as one of them sees them.
#[derive(Debug)]
pub struct Ranks {
    rank: usize,
    /// Connections by rank; `None` at the place of this one.
    peers: Vec<Option<TcpStream>>,
}

impl Default for Ranks {
    fn default() -> Self {
        Self::alone()
    }
}

impl Ranks {
    /// Returns the only rank of a run.
    pub fn alone() -> Self {
        Self { rank: 0, peers: vec![None] }
    }

    /// Joins the other ranks as number `rank` of `count`. Rank 0 listens at `address`, `host:port`; the others may start
    /// earlier or later. Connections are neither encrypted nor authenticated: use a network that you trust.
    ///
    /// # Errors
    /// [`Error::Config`] for a rank that is not below `count`; [`Error::Ranks`] if the ranks do not find one another
    /// within 10 minutes, or do not fit.
    pub fn join(rank: usize, count: usize, address: &str) -> Result<Self> {
        if rank >= count {
            return Err(Error::config("rank", rank, format!("a number below {count}, the number of ranks")));
        }
        if count == 1 {
            return Ok(Self::alone());
        }
        let deadline = Instant::now() + PATIENCE;
        let failed = |action: &str| {
            let action = format!("{action} `{address}`");
            move |error: io::Error| Error::ranks(format!("cannot {action}: {error}"))
        };
        let targets: Vec<SocketAddr> = address.to_socket_addrs().map_err(failed("look up"))?.collect();
        let mut joined = Self { rank, peers: (0..count).map(|_| None).collect() };
        if rank == 0 {
            let listener = TcpListener::bind(&targets[..]).map_err(failed("listen at"))?;
            let mut doors = vec![String::new(); count];
            for _ in 1..count {
                let (stream, from) = accept(&listener, deadline).map_err(failed("be joined at"))?;
                let (other, port) = joined.welcome(stream).map_err(failed("be joined at"))??;
                doors[other] = SocketAddr::new(from.ip(), port).to_string();
            }
            joined.gather(packed(doors)?)?;
            return Ok(joined);
        }
        let stream = connect(&targets, deadline).map_err(failed("reach rank 0 at"))?;
        // On the interface that leads to rank 0, where the others look for this rank.
        let own: IpAddr = stream.local_addr().map_err(failed("reach rank 0 at"))?.ip();
        let listener = TcpListener::bind((own, 0)).map_err(failed("be reached from"))?;
        let port = listener.local_addr().map_err(failed("be reached from"))?.port();
        send(&stream, Kind::Data, &packed((hello(count), (rank, usize::from(port))))?).map_err(failed("greet"))?;
        joined.peers[0] = Some(stream);
        let doors = receive(joined.peers[0].as_ref(), 0)?;
        let doors = Vec::<String>::unpack(&mut Packet::received(doors), &Default::default())?;
        for (other, door) in doors.iter().enumerate().take(rank).skip(1) {
            let target = door.parse().map_err(|_| Error::ranks(format!("rank 0 sent `{door}` as an address")))?;
            let lost = |error| Error::rank(other, format!("cannot be reached at `{door}`: {error}"));
            let stream = connect(&[target], deadline).map_err(lost)?;
            send(&stream, Kind::Data, &packed((hello(count), (rank, 0_usize)))?).map_err(lost)?;
            joined.peers[other] = Some(stream);
        }
        for _ in rank + 1..count {
            let (stream, _) = accept(&listener, deadline).map_err(failed("be joined behind"))?;
            joined.welcome(stream).map_err(failed("be joined behind"))??;
        }
        // Rank 0 waits for all here, so that no rank trains before all are connected.
        joined.send_all(Kind::Data, &[]);
        let others = (1..count).filter(|other| *other != rank);
        others.map(|other| receive(joined.peers[other].as_ref(), other)).collect::<Result<Vec<_>>>()?;
        Ok(joined)
    }

    /// Takes in a rank that has connected: returns its number, and the port at which it listens.
    fn welcome(&mut self, stream: TcpStream) -> io::Result<Result<(usize, u16)>> {
        prepare(&stream)?;
        let (kind, greeting) = read_frame(&stream)?;
        if kind != Kind::Data {
            return Ok(Err(Error::ranks("a rank stopped before it had joined")));
        }
        let read = |greeting| <(String, (usize, usize))>::unpack(&mut Packet::received(greeting), &Default::default());
        let Ok((version, (other, port))) = read(greeting) else {
            return Ok(Err(Error::ranks("something that is no rank of a training run has connected")));
        };
        let expected = hello(self.peers.len());
        let refused = if version != expected {
            Some(format!("it is `{version}`, this one is `{expected}`"))
        } else if other >= self.peers.len() || other == self.rank || self.peers[other].is_some() {
            Some("another process has this number: start each rank once".to_owned())
        } else {
            None
        };
        if let Some(reason) = refused {
            send(&stream, Kind::Abort, &abort_text(other, &reason))?;
            return Ok(Err(Error::rank(other, reason)));
        }
        self.peers[other] = Some(stream);
        Ok(Ok((other, port as u16)))
    }

    /// Returns the number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Returns the number of ranks.
    pub fn count(&self) -> usize {
        self.peers.len()
    }

    /// Returns true on rank 0, which writes all files.
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// Sends a message to all ranks, and returns those of all ranks in order.
    ///
    /// # Errors
    /// [`Error::Rank`] naming a rank that has stopped.
    pub fn gather(&mut self, message: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let messages = vec![&message[..]; self.count()];
        self.exchange(&messages)
    }

    /// Waits until all ranks have come here.
    ///
    /// # Errors
    /// The errors of [`Ranks::gather`].
    pub fn wait(&mut self) -> Result<()> {
        self.gather(Vec::new()).map(|_| ())
    }

    /// Returns true if it is true on any rank.
    ///
    /// # Errors
    /// The errors of [`Ranks::gather`].
    pub fn any(&mut self, own: bool) -> Result<bool> {
        Ok(self.gather(vec![u8::from(own)])?.concat().contains(&1))
    }

    /// Checks that all ranks have the same text as rank 0; `name` is what it is.
    ///
    /// # Errors
    /// [`Error::Rank`] naming a rank with another one, and the first line that differs.
    pub fn check_same(&mut self, name: &str, text: &str) -> Result<()> {
        let texts = self.gather(text.as_bytes().to_vec())?;
        let first = String::from_utf8_lossy(&texts[0]);
        for (rank, other) in texts.iter().enumerate() {
            let other = String::from_utf8_lossy(other);
            if other != first {
                let pair = first.lines().zip(other.lines()).find(|(a, b)| a != b);
                let (a, b) = pair.unwrap_or(("the end", "another length"));
                return Err(Error::rank(rank, format!("has another {name}: `{b}`, where rank 0 has `{a}`")));
            }
        }
        Ok(())
    }

    /// Replaces numbers by their sums over all ranks. Each is added in the order of the ranks, by the one rank that owns it,
    /// so that all ranks get the same bits.
    ///
    /// # Errors
    /// The errors of [`Ranks::gather`]; [`Error::Rank`] if a rank has more or fewer numbers.
    pub fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        let count = self.count();
        if count == 1 {
            return Ok(());
        }
        let slice = |rank: usize| rank * values.len() / count..(rank + 1) * values.len() / count;
        let own = slice(self.rank);
        let slices: Vec<&[u8]> = (0..count).map(|rank| bytemuck::cast_slice(&values[slice(rank)])).collect();
        let parts = self.exchange(&slices)?;
        let mut sums = vec![0.0; own.len()];
        for (rank, part) in parts.iter().enumerate() {
            if part.len() != 4 * own.len() {
                let reason = format!("sent {} bytes of gradients, expected {}", part.len(), 4 * own.len());
                return Err(Error::rank(rank, reason));
            }
            let numbers = part.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes));
            match rank {
                0 => sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum = number),
                _ => sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number),
            }
        }
        let all = self.gather(bytemuck::cast_slice(&sums).to_vec())?.concat();
        let numbers = all.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes));
        values.iter_mut().zip(numbers).for_each(|(value, number)| *value = number);
        Ok(())
    }

    /// Tells the other ranks that the run ends here, and why.
    pub fn abort(&mut self, error: &Error) {
        let message = match error {
            Error::Rank { rank, reason } => abort_text(*rank, reason),
            other => abort_text(self.rank, &format!("stopped: {other}")),
        };
        self.send_all(Kind::Abort, &message);
    }

    /// Sends a frame to all; those that are gone are found when they are read from.
    fn send_all(&self, kind: Kind, message: &[u8]) {
        for stream in self.peers.iter().flatten() {
            _ = send(stream, kind, message);
        }
    }

    /// Sends one message to each rank, and returns what each has sent to this one, in order.
    fn exchange(&mut self, messages: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        let (own, peers) = (self.rank, &self.peers);
        std::thread::scope(|scope| {
            for (stream, message) in peers.iter().zip(messages) {
                if let Some(stream) = stream {
                    scope.spawn(move || send(stream, Kind::Data, message));
                }
            }
            let read = |(rank, stream): (usize, &Option<TcpStream>)| match rank == own {
                true => Ok(messages[own].to_vec()),
                false => receive(stream.as_ref(), rank),
            };
            // From all of them, even after a failure: a rank that is not read from could not finish sending, and would wait.
            let received: Vec<Result<Vec<u8>>> = peers.iter().enumerate().map(read).collect();
            received.into_iter().collect()
        })
    }
}

/// Greeting of the ranks of one run: the version, and the number of ranks.
fn hello(count: usize) -> String {
    format!("burn-var {} with {count} ranks", env!("CARGO_PKG_VERSION"))
}

fn packed(value: impl Portable) -> Result<Vec<u8>> {
    let mut packet = Packet::default();
    value.pack(&mut packet)?;
    Ok(packet.into_bytes())
}

fn abort_text(rank: usize, reason: &str) -> Vec<u8> {
    let mut message = (rank as u64).to_le_bytes().to_vec();
    message.extend(reason.as_bytes());
    message
}

/// Switches off the delay of small messages, and lets the system notice when the other machine is gone.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let [time, interval] = KEEPALIVE;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(interval))
}

fn connect(targets: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    loop {
        match TcpStream::connect(targets) {
            Ok(stream) => {
                prepare(&stream)?;
                return Ok(stream);
            }
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

fn accept(listener: &TcpListener, deadline: Instant) -> io::Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok(found) => return Ok(found),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if Instant::now() > deadline => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a rank has not come within 10 minutes"));
            }
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

fn send(mut stream: &TcpStream, kind: Kind, message: &[u8]) -> io::Result<()> {
    let mut head = [kind as u8; 9];
    head[1..].copy_from_slice(&(message.len() as u64).to_le_bytes());
    stream.write_all(&head)?;
    stream.write_all(message)
}

fn read_frame(mut stream: &TcpStream) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let kind = match head[0] {
        kind if kind == Kind::Data as u8 => Kind::Data,
        kind if kind == Kind::Abort as u8 => Kind::Abort,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "no message of a rank")),
    };
    let mut length = [0; 8];
    length.copy_from_slice(&head[1..]);
    let length = u64::from_le_bytes(length);
    let mut message = Vec::new();
    stream.take(length).read_to_end(&mut message)?;
    match message.len() as u64 == length {
        true => Ok((kind, message)),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Reads a message of `rank`.
fn receive(stream: Option<&TcpStream>, rank: usize) -> Result<Vec<u8>> {
    let lost = |error: io::Error| {
        let reason = match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                "has ended without a message: it was killed, or its machine has stopped".to_owned()
            }
            _ => format!("cannot be heard any more: {error}"),
        };
        Error::rank(rank, reason)
    };
    let stream = stream.ok_or_else(|| Error::rank(rank, "is not connected"))?;
    match read_frame(stream).map_err(lost)? {
        (Kind::Data, message) => Ok(message),
        (Kind::Abort, message) => {
            let (cause, reason) = message.split_at(message.len().min(8));
            let cause = cause.try_into().map_or(rank as u64, u64::from_le_bytes);
            Err(Error::rank(cause as usize, String::from_utf8_lossy(reason).into_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Runs `work` on every rank of `count`, and returns what they return, in order.
    fn together<T: Send>(count: usize, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = &format!("127.0.0.1:{port}");
        thread::scope(|scope| {
            let work = &work;
            let start = |rank| scope.spawn(move || work(Ranks::join(rank, count, address).unwrap()));
            let threads: Vec<_> = (0..count).rev().map(start).collect();
            let mut found: Vec<T> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            found.reverse();
            found
        })
    }

    #[test]
    fn messages_arrive_in_the_order_of_the_ranks() {
        let found = together(4, |mut ranks| {
            assert_eq!(ranks.count(), 4);
            let all = ranks.gather(vec![ranks.rank() as u8; ranks.rank()]).unwrap();
            let (some, none) = (ranks.any(ranks.rank() == 2).unwrap(), ranks.any(false).unwrap());
            (ranks.leads(), all, some, none)
        });
        for (rank, (leads, all, some, none)) in found.into_iter().enumerate() {
            assert_eq!(leads, rank == 0);
            assert_eq!(all, [vec![], vec![1], vec![2, 2], vec![3, 3, 3]]);
            assert!(some && !none);
        }
    }

    #[test]
    fn sums_are_those_in_the_order_of_the_ranks_to_the_bit() {
        // More than fits into a socket's buffers, and not a multiple of the number of ranks.
        let value = |rank: usize, i: usize| ((i * 37 + rank * 101) % 1009) as f32 * 0.1f32.powi((rank * 3) as i32);
        for length in [1_000_003, 2, 0] {
            let found = together(3, |mut ranks| {
                let mut values: Vec<f32> = (0..length).map(|i| value(ranks.rank(), i)).collect();
                ranks.sum(&mut values).unwrap();
                values
            });
            let expected: Vec<f32> = (0..length).map(|i| (value(0, i) + value(1, i)) + value(2, i)).collect();
            assert!(found.iter().all(|sums| *sums == expected), "{length} numbers");
        }
    }

    #[test]
    fn a_rank_that_stops_is_named_on_all_others_with_its_reason() {
        let found = together(3, |mut ranks| {
            if ranks.rank() == 1 {
                ranks.abort(&Error::config("learning_rate", -1, "a positive number"));
                return String::new();
            }
            let error = ranks.sum(&mut vec![1.0; 1_000_000]).unwrap_err();
            ranks.abort(&error);
            error.to_string()
        });
        for message in [&found[0], &found[2]] {
            assert!(message.contains("rank 1") && message.contains("`learning_rate` is -1"), "{message}");
        }
        let found = together(2, |mut ranks| if ranks.rank() == 1 { None } else { ranks.wait().err() });
        let message = found[0].as_ref().unwrap().to_string();
        assert!(message.contains("rank 1") && message.contains("killed"), "{message}");
    }

    #[test]
    fn ranks_with_other_settings_are_named() {
        let found = together(2, |mut ranks| {
            let text = format!("steps = 3\nseed = {}", ranks.rank());
            ranks.check_same("configuration", &text).unwrap_err().to_string()
        });
        for message in found {
            assert!(message.contains("rank 1") && message.contains("`seed = 1`"), "{message}");
        }
        assert!(matches!(Ranks::join(2, 2, "127.0.0.1:1"), Err(Error::Config { .. })));
    }
}
