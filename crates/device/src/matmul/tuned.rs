//! Algorithms that were timed and found best, in memory and in a file.
//!
//! A file belongs to one card and one version of the library, and is text: a heading, a line for each product, and a
//! hash of all of that. It is replaced as a whole. One that isn't as it was written is ignored and replaced later: what
//! it held is timed again.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::library::Algorithm;
use super::plan::{Alignment, PlanKey};
use super::{F8Product, MatmulShape};
use crate::DType;

/// How many times the rows asked for an algorithm may have been timed with: beyond, its tiles would be the wrong ones.
const MAX_ROWS_RATIO: usize = 2;

/// The first line of a file; another format gets another number, and so does another choice among
/// algorithms.
const HEADING: &str = "foveal matmul algorithms 4";
/// How the last line begins.
const CHECKSUM: &str = "blake3 ";

/// An algorithm that was timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tuned {
    pub(super) algorithm: Algorithm,
    pub(super) microseconds: f32,
}

/// Families of products, and their algorithms by rows.
type Table = HashMap<PlanKey, BTreeMap<usize, Tuned>>;

/// Tuned algorithms of one card and version of the library.
pub(super) struct TunedAlgorithms {
    table: Table,
    file: Option<PathBuf>,
    /// The lines that a file of these begins with.
    heading: String,
}

impl TunedAlgorithms {
    /// Reads what was kept in `folder`. Never fails: what can't be read is timed again.
    pub(super) fn open(folder: Option<PathBuf>, card: &str, version: usize) -> Self {
        let card: String = card.chars().filter(|c| !c.is_control()).collect();
        let heading = format!("{HEADING}\ncard {card}\ncublaslt {version}\n");
        let name = blake3::hash(heading.as_bytes()).to_hex();
        let file = folder.map(|folder| folder.join(format!("{}.txt", name.get(..16).unwrap_or_default())));
        let table = file.as_deref().map(|file| read(file, &heading)).unwrap_or_default();
        Self { table, file, heading }
    }

    /// The algorithm that was timed for exactly this.
    pub(super) fn exact(&self, key: &PlanKey) -> Option<&Tuned> {
        self.table.get(&key.family())?.get(&key.shape.m)
    }

    /// The algorithm that was timed for these rows, or for the next larger number of them if that isn't much larger.
    pub(super) fn of_rows(&self, key: &PlanKey) -> Option<&Tuned> {
        let m = key.shape.m;
        let rows = self.table.get(&key.family())?;
        rows.range(m..=m.saturating_mul(MAX_ROWS_RATIO)).next().map(|(_, tuned)| tuned)
    }

    /// Remembers an algorithm, also for later processes if it can be written.
    pub(super) fn insert(&mut self, key: PlanKey, tuned: Tuned) {
        self.table.entry(key.family()).or_default().insert(key.shape.m, tuned);
        let Some(file) = &self.file else { return };
        // Another process may have written since; what was timed here goes before.
        for (family, rows) in read(file, &self.heading) {
            let own = self.table.entry(family).or_default();
            for (m, tuned) in rows {
                own.entry(m).or_insert(tuned);
            }
        }
        if let Err(error) = write(file, &print(&self.heading, &self.table)) {
            tracing::warn!(file = %file.display(), %error, "tuned matrix products can't be kept, so that they are timed again");
            // Told once.
            self.file = None;
        }
    }
}

fn read(file: &Path, heading: &str) -> Table {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Table::new(),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "tuned matrix products can't be read");
            return Table::new();
        }
    };
    parse(heading, &text).unwrap_or_else(|| {
        tracing::warn!(file = %file.display(), "the file of tuned matrix products is damaged and isn't used");
        Table::new()
    })
}

/// Writes aside, then renames, so that the file is whole at any time.
fn write(file: &Path, text: &str) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    fs::create_dir_all(folder)?;
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let aside = folder.join(format!(".{}.{}.{count}", name.to_string_lossy(), std::process::id()));
    let written = File::create_new(&aside).and_then(|mut to| {
        to.write_all(text.as_bytes())?;
        to.sync_all()?;
        fs::rename(&aside, file)
    });
    if written.is_err() {
        let _ = fs::remove_file(&aside);
        return written;
    }
    // So that the name survives a power cut, not only the bytes.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

fn print(heading: &str, table: &Table) -> String {
    let entries = table.iter().flat_map(|(family, rows)| rows.iter().map(move |(m, tuned)| (family, *m, tuned)));
    let mut lines: Vec<String> = entries.map(|(family, m, tuned)| line(family, m, tuned)).collect();
    // Equal contents give equal files.
    lines.sort_unstable();
    let mut text = heading.to_owned();
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    let hash = blake3::hash(text.as_bytes()).to_hex();
    // Writing to a string can't fail.
    let _ = writeln!(text, "{CHECKSUM}{hash}");
    text
}

/// x weight out bias fast blocks n k ldo x' weight' bias' out' m microseconds algorithm, where ' is an alignment.
fn line(family: &PlanKey, m: usize, tuned: &Tuned) -> String {
    let MatmulShape { n, k, x, weight, out, bias, ldo, f8, .. } = family.shape;
    let bias = bias.map_or_else(|| "-".to_owned(), |bias| bias.to_string());
    let a = family.alignment;
    let F8Product { fast_accumulation, has_block_scales } = f8;
    let [fast, blocks] = [fast_accumulation, has_block_scales].map(u8::from);
    let mut line = format!("{x} {weight} {out} {bias} {fast} {blocks} {n} {k} {ldo}");
    // Writing to a string can't fail.
    let _ = write!(line, " {} {} {} {}", a.x, a.weight, a.bias, a.out);
    let _ = write!(line, " {m} {}", tuned.microseconds);
    for word in tuned.algorithm {
        let _ = write!(line, " {word:016x}");
    }
    line
}

/// `None` if anything isn't as it was written.
fn parse(heading: &str, text: &str) -> Option<Table> {
    let end = text.rfind(CHECKSUM)?;
    let (body, last) = text.split_at_checked(end)?;
    if last.trim_end().strip_prefix(CHECKSUM)? != blake3::hash(body.as_bytes()).to_hex().as_str() {
        return None;
    }
    let mut table = Table::new();
    for line in body.strip_prefix(heading)?.lines() {
        let (key, tuned) = parse_line(line)?;
        table.entry(key.family()).or_default().insert(key.shape.m, tuned);
    }
    Some(table)
}

fn parse_line(line: &str) -> Option<(PlanKey, Tuned)> {
    let mut words = line.split(' ');
    let [x, weight, out] = [dtype(words.next()?)?, dtype(words.next()?)?, dtype(words.next()?)?];
    let bias = match words.next()? {
        "-" => None,
        name => Some(dtype(name)?),
    };
    let f8 = F8Product { fast_accumulation: flag(words.next())?, has_block_scales: flag(words.next())? };
    let [n, k, ldo] = [number(words.next())?, number(words.next())?, number(words.next())?];
    let alignment = Alignment {
        x: number(words.next())?,
        weight: number(words.next())?,
        bias: number(words.next())?,
        out: number(words.next())?,
    };
    let m = number(words.next())?;
    let microseconds = number(words.next())?;
    let mut algorithm = Algorithm::default();
    for word in &mut algorithm {
        *word = u64::from_str_radix(words.next()?, 16).ok()?;
    }
    let shape = MatmulShape { m, n, k, x, weight, out, bias, ldo, f8 };
    words.next().is_none().then_some((PlanKey { shape, alignment }, Tuned { algorithm, microseconds }))
}

fn number<T: FromStr>(word: Option<&str>) -> Option<T> {
    word?.parse().ok()
}

fn flag(word: Option<&str>) -> Option<bool> {
    match word? {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

fn dtype(name: &str) -> Option<DType> {
    [DType::F32, DType::BF16, DType::F8E4M3].into_iter().find(|dtype| dtype.to_string() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(m: usize, n: usize, bias: Option<DType>) -> PlanKey {
        let (x, weight, out) = match bias {
            Some(_) => (DType::BF16, DType::BF16, DType::BF16),
            None => (DType::F8E4M3, DType::F8E4M3, DType::BF16),
        };
        let f8 = F8Product { fast_accumulation: n.is_multiple_of(64), has_block_scales: m.is_multiple_of(2) };
        let shape = MatmulShape { m, n, k: 4096, x, weight, out, bias, ldo: 2 * n, f8 };
        PlanKey { shape, alignment: Alignment { x: 16, weight: 16, bias: 16, out: 8 } }
    }

    fn tuned(seed: u64) -> Tuned {
        Tuned { algorithm: std::array::from_fn(|i| seed << 60 | i as u64), microseconds: seed as f32 + 0.1 }
    }

    fn open(folder: &Path) -> TunedAlgorithms {
        TunedAlgorithms::open(Some(folder.join("matmuls")), "NVIDIA H200", 130_100)
    }

    fn only_file(folder: &Path) -> PathBuf {
        let files: Vec<_> = fs::read_dir(folder.join("matmuls")).unwrap().map(|f| f.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }

    #[test]
    fn an_algorithm_serves_its_rows_and_up_to_half_as_many() {
        let mut all = TunedAlgorithms::open(None, "card", 1);
        all.insert(key(64, 10, None), tuned(1));
        all.insert(key(8, 10, None), tuned(2));
        let of = |m| all.of_rows(&key(m, 10, None)).copied();
        assert_eq!(all.exact(&key(64, 10, None)), Some(&tuned(1)));
        assert_eq!(all.exact(&key(63, 10, None)), None);
        assert_eq!([of(3), of(4), of(8), of(9), of(31)], [None, Some(tuned(2)), Some(tuned(2)), None, None]);
        assert_eq!([of(32), of(64), of(65)], [Some(tuned(1)), Some(tuned(1)), None]);
        assert_eq!(all.of_rows(&key(64, 11, None)), None);
        assert_eq!(all.of_rows(&key(64, 10, Some(DType::BF16))), None);
        let other = PlanKey { alignment: Alignment { x: 8, ..key(64, 10, None).alignment }, ..key(64, 10, None) };
        assert_eq!(all.of_rows(&other), None, "what needs 16 bytes can't read at 8");
    }

    #[test]
    fn what_was_tuned_is_there_in_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let entries =
            [(key(1, 10, None), tuned(1)), (key(7, 10, Some(DType::F32)), tuned(3)), (key(9, 10, None), tuned(2))];
        let mut first = open(folder.path());
        for (key, tuned) in entries {
            first.insert(key, tuned);
        }
        let second = open(folder.path());
        for (key, tuned) in entries {
            assert_eq!(second.exact(&key), Some(&tuned));
        }
        only_file(folder.path());
        // Neither another card nor another library takes it.
        for (card, version) in [("NVIDIA H100", 130_100), ("NVIDIA H200", 130_200)] {
            let other = TunedAlgorithms::open(Some(folder.path().join("matmuls")), card, version);
            assert!(other.table.is_empty());
        }
    }

    #[test]
    fn two_processes_keep_both_their_algorithms() {
        let folder = tempfile::tempdir().unwrap();
        let (mut one, mut two) = (open(folder.path()), open(folder.path()));
        one.insert(key(1, 10, None), tuned(1));
        two.insert(key(2, 10, None), tuned(2));
        one.insert(key(3, 20, None), tuned(3));
        let all = open(folder.path());
        assert_eq!(all.table.values().map(BTreeMap::len).sum::<usize>(), 3);
    }

    #[test]
    fn a_damaged_file_is_ignored_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = open(folder.path());
        first.insert(key(1, 10, None), tuned(1));
        first.insert(key(2, 10, None), tuned(2));
        let file = only_file(folder.path());
        let good = fs::read(&file).unwrap();
        let mut damaged = vec![Vec::new(), vec![0xff, 0xfe], b"\n\n".to_vec()];
        damaged.extend((0..good.len() - 1).step_by(7).map(|len| good[..len].to_vec()));
        damaged.extend((0..good.len() - 1).step_by(5).map(|at| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        }));
        for bytes in damaged {
            fs::write(&file, &bytes).unwrap();
            assert!(open(folder.path()).table.is_empty(), "{}", String::from_utf8_lossy(&bytes));
        }
        open(folder.path()).insert(key(5, 10, None), tuned(5));
        assert_eq!(open(folder.path()).exact(&key(5, 10, None)), Some(&tuned(5)));
        only_file(folder.path());
    }

    #[test]
    fn a_folder_that_cant_be_written_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("matmuls"), "a file").unwrap();
        let mut all = open(folder.path());
        all.insert(key(1, 10, None), tuned(1));
        all.insert(key(2, 10, None), tuned(2));
        assert_eq!(all.exact(&key(2, 10, None)), Some(&tuned(2)));
    }
}
