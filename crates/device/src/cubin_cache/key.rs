//! What tells two cubins apart, and which one runs where.

use blake3::Hasher;

use crate::libraries::CudaVersion;
use crate::{KernelSpec, nvrtc};

/// Changes when entries are laid out otherwise, so that old ones are passed by.
const FORMAT: &str = "foveal cubin 1";

/// Hex digits of the hash in a folder's name: 128 bits.
const HASH_LEN: usize = 32;

/// The folder's name: what it is, for people, and a hash of everything that the machine code depends on. Without
/// `nvrtc` it is found on machines that have no compiler.
pub(super) fn entry_name(spec: &KernelSpec, arch: &str, nvrtc: Option<CudaVersion>) -> String {
    let source = spec.source();
    let mut key = Hasher::new();
    add(&mut key, FORMAT);
    add(&mut key, source.name);
    add(&mut key, source.text);
    add(&mut key, spec.entry());
    for header in source.headers {
        add(&mut key, "header");
        add(&mut key, header.name);
        add(&mut key, header.text);
    }
    for option in nvrtc::options(spec, arch) {
        add(&mut key, "option");
        add(&mut key, &option);
    }
    if let Some(version) = nvrtc {
        add(&mut key, "nvrtc");
        add(&mut key, &version.to_string());
    }
    let hash = key.finalize().to_hex();
    format!("{}-{}.{}", source.name, spec.entry(), hash.get(..HASH_LEN).unwrap_or(&hash))
}

/// With its length before it: no two lists of parts are the same bytes.
fn add(key: &mut Hasher, part: &str) {
    let len = part.len() as u64;
    key.update(&len.to_le_bytes()).update(part.as_bytes());
}

/// The architectures whose machine code runs on a device of this one, best first: within a major version newer devices
/// run the code of older ones. Code for `sm_90a` runs on 9.0 only, and a 9.0 runs the plain code too.
pub(crate) fn runs_on(arch: &str) -> Vec<String> {
    let mut archs = vec![arch.to_owned()];
    let number = arch.strip_prefix("sm_").map(|rest| rest.trim_end_matches(['a', 'f']));
    // The last digit is the minor version: sm_120 is 12.0.
    if let Some(number) = number.and_then(|digits| digits.parse::<u32>().ok()) {
        let first = number - number % 10;
        archs.extend((first..=number).rev().map(|n| format!("sm_{n}")).filter(|plain| plain != arch));
    }
    archs
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{entry_name, runs_on};
    use crate::libraries::CudaVersion;
    use crate::{DType, Header, KernelSource, KernelSpec};

    static PRELUDE: &[Header] = &[Header { name: "a.cuh", text: "// a" }];
    static OTHER_TEXT: &[Header] = &[Header { name: "a.cuh", text: "// b" }];
    static OTHER_NAME: &[Header] = &[Header { name: "b.cuh", text: "// a" }];
    static SOURCES: [KernelSource; 5] = [
        KernelSource { name: "k", text: "x", headers: PRELUDE },
        KernelSource { name: "k", text: "x", headers: OTHER_TEXT },
        KernelSource { name: "k", text: "x", headers: OTHER_NAME },
        KernelSource { name: "k", text: "x", headers: &[] },
        KernelSource { name: "k", text: "y", headers: PRELUDE },
    ];

    #[test]
    fn everything_that_the_code_depends_on_is_in_the_key() {
        let mut names = HashSet::new();
        let mut add = |name: String| assert!(names.insert(name.clone()), "{name} twice");
        for source in &SOURCES {
            add(entry_name(&KernelSpec::new(source, "k"), "sm_80", None));
        }
        let plain = KernelSpec::new(&SOURCES[0], "k");
        add(entry_name(&plain, "sm_90a", None));
        add(entry_name(&KernelSpec::new(&SOURCES[0], "l"), "sm_80", None));
        add(entry_name(&plain.int("N", 1), "sm_80", None));
        add(entry_name(&plain.int("N", 12), "sm_80", None));
        add(entry_name(&plain.int("M", 1), "sm_80", None));
        add(entry_name(&plain.dtype("N", DType::F16), "sm_80", None));
        add(entry_name(&plain, "sm_80", Some(CudaVersion { major: 13, minor: 0 })));
        add(entry_name(&plain, "sm_80", Some(CudaVersion { major: 13, minor: 1 })));
    }

    #[test]
    fn a_name_says_what_it_is_and_stays_the_same() {
        let spec = KernelSpec::new(&SOURCES[0], "k").int("N", 1);
        let name = entry_name(&spec, "sm_80", None);
        let (head, hash) = name.split_once('.').unwrap();
        assert_eq!((head, hash.len()), ("k-k", 32), "{name}");
        assert_eq!(name, entry_name(&spec, "sm_80", None));
    }

    #[test]
    fn code_of_older_devices_of_the_family_runs() {
        assert_eq!(runs_on("sm_86"), ["sm_86", "sm_85", "sm_84", "sm_83", "sm_82", "sm_81", "sm_80"]);
        assert_eq!(runs_on("sm_80"), ["sm_80"]);
        assert_eq!(runs_on("sm_90a"), ["sm_90a", "sm_90"]);
        assert_eq!(runs_on("sm_121"), ["sm_121", "sm_120"]);
        assert_eq!(runs_on("else"), ["else"]);
    }
}
