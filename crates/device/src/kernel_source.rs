//! Kernels as text, and the variants of them that are compiled.

use std::fmt;
use std::hash::{Hash, Hasher};

use crate::DType;

/// The most defines of one [`KernelSpec`].
const MAX_DEFINES: usize = 12;

/// A header that kernels include by its name; nothing is read from disk.
#[derive(Debug)]
pub struct Header {
    /// As it stands in `#include "..."`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// A CUDA source with everything it may include. Make it a `static`: two of them are the same source if they lie at
/// the same address.
#[derive(Debug)]
pub struct KernelSource {
    /// The operator's name: in messages, and in the names of cache entries.
    pub name: &'static str,
    /// CUDA C++.
    pub text: &'static str,
    /// Every header that it may include, directly or by another header.
    pub headers: &'static [Header],
}

/// One variant of a kernel: a source, an entry of it and the defines that it is compiled with.
///
/// Comparing and hashing never read the source's text, so that a launch can look its module up by its spec.
#[derive(Clone, Copy)]
pub struct KernelSpec {
    source: &'static KernelSource,
    entry: &'static str,
    defines: [Define; MAX_DEFINES],
    num_defines: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Define {
    name: &'static str,
    value: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Value {
    DType(DType),
    Int(i64),
}

impl KernelSpec {
    /// The variant without defines; `entry` is the name of an `extern "C" __global__` function.
    #[must_use]
    pub const fn new(source: &'static KernelSource, entry: &'static str) -> Self {
        let unused = Define { name: "", value: Value::Int(0) };
        Self { source, entry, defines: [unused; MAX_DEFINES], num_defines: 0 }
    }

    /// Defines `name` as an element type: `-Dname=bf16_t`.
    ///
    /// # Panics
    /// With more than 12 defines.
    #[must_use]
    pub const fn dtype(self, name: &'static str, dtype: DType) -> Self {
        self.define(Define { name, value: Value::DType(dtype) })
    }

    /// Defines `name` as an integer: `-Dname=value`.
    ///
    /// # Panics
    /// With more than 12 defines.
    #[must_use]
    pub const fn int(self, name: &'static str, value: i64) -> Self {
        self.define(Define { name, value: Value::Int(value) })
    }

    const fn define(mut self, define: Define) -> Self {
        let slot = match self.defines.split_at_mut_checked(self.num_defines) {
            Some((_, rest)) => rest.split_first_mut(),
            None => None,
        };
        match slot {
            Some((slot, _)) => *slot = define,
            None => panic!("a kernel takes at most 12 defines"),
        }
        self.num_defines += 1;
        self
    }

    /// What is compiled.
    #[must_use]
    pub const fn source(&self) -> &'static KernelSource {
        self.source
    }

    /// The name of the `extern "C" __global__` function.
    #[must_use]
    pub const fn entry(&self) -> &'static str {
        self.entry
    }

    /// The defines as the compiler takes them, in the order given: `-Dname=value`.
    pub fn defines(&self) -> impl Iterator<Item = String> {
        self.given().iter().map(|define| format!("-D{}={}", define.name, define.value))
    }

    fn given(&self) -> &[Define] {
        self.defines.get(..self.num_defines).unwrap_or(&self.defines)
    }
}

impl PartialEq for KernelSpec {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.source, other.source) && self.entry == other.entry && self.given() == other.given()
    }
}

impl Eq for KernelSpec {}

impl Hash for KernelSpec {
    /// By the source's address, the entry and the values: the names of defines hardly ever tell two variants apart.
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::hash(self.source, state);
        self.entry.hash(state);
        for define in self.given() {
            define.value.hash(state);
        }
    }
}

impl fmt::Display for KernelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source.name, self.entry)?;
        self.defines().try_for_each(|define| write!(f, " {define}"))
    }
}

impl fmt::Debug for KernelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KernelSpec({self})")
    }
}

impl fmt::Display for Value {
    /// Element types have the names of `prelude.cuh`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DType(dtype) => write!(f, "{dtype}_t"),
            Self::Int(value) => write!(f, "{value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{KernelSource, KernelSpec, MAX_DEFINES};
    use crate::DType;

    static NORM: KernelSource = KernelSource { name: "norm", text: "// one", headers: &[] };
    static OTHER: KernelSource = KernelSource { name: "norm", text: "// one", headers: &[] };
    const ADD_NORM: KernelSpec = KernelSpec::new(&NORM, "add_norm").dtype("X_T", DType::BF16).int("HIDDEN", 2048);

    #[test]
    fn a_spec_is_built_in_a_constant() {
        assert_eq!(ADD_NORM.to_string(), "norm:add_norm -DX_T=bf16_t -DHIDDEN=2048");
        assert_eq!(ADD_NORM.defines().collect::<Vec<_>>(), ["-DX_T=bf16_t", "-DHIDDEN=2048"]);
        assert_eq!(ADD_NORM.entry(), "add_norm");
    }

    #[test]
    fn element_types_have_the_names_of_the_prelude() {
        let types = [DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::U8, DType::I32, DType::I64];
        let names = types.map(|dtype| KernelSpec::new(&NORM, "k").dtype("T", dtype).defines().next().unwrap());
        let expected = ["f32_t", "bf16_t", "f16_t", "f8_e4m3_t", "u8_t", "i32_t", "i64_t"];
        assert_eq!(names, expected.map(|name| format!("-DT={name}")));
    }

    #[test]
    fn every_part_tells_two_variants_apart() {
        let mut seen = HashMap::new();
        let plain = KernelSpec::new(&NORM, "k");
        let variants = [
            plain,
            KernelSpec::new(&OTHER, "k"),
            KernelSpec::new(&NORM, "l"),
            plain.int("N", 1),
            plain.int("M", 1),
            plain.int("N", 2),
            plain.int("N", 1).int("M", 1),
            plain.dtype("N", DType::F32),
        ];
        for (i, spec) in variants.iter().enumerate() {
            assert_eq!(seen.insert(*spec, i), None, "{spec}");
        }
        assert_eq!(seen.get(&KernelSpec::new(&NORM, "k").int("N", 2)), Some(&5), "found again by an equal spec");
    }

    #[test]
    fn twelve_defines_are_taken() {
        let spec = (0..MAX_DEFINES).fold(KernelSpec::new(&NORM, "k"), |spec, i| spec.int("N", i as i64));
        assert_eq!(spec.defines().count(), MAX_DEFINES);
    }

    #[test]
    fn a_thirteenth_define_is_a_bug() {
        let one_too_many = || (0..=MAX_DEFINES).fold(KernelSpec::new(&NORM, "k"), |spec, i| spec.int("N", i as i64));
        let Err(panic) = std::panic::catch_unwind(one_too_many) else { panic!("it was taken") };
        assert!(panic.downcast_ref::<&str>().is_some_and(|text| text.contains("at most 12 defines")));
    }
}
