//! What `ptxas -v` says in the compiler's log.

/// What a kernel takes of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelResources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes that a thread moves between registers and local memory for want of registers: stores and loads together.
    /// A kernel that spills is slow; none of Foveal's does.
    pub spill_bytes: u32,
    /// Shared memory of a block, without what the launch adds.
    pub shared_bytes: u32,
    /// Local memory of a thread.
    pub stack_bytes: u32,
}

impl KernelResources {
    /// What the log says about an entry; `None` if nothing.
    #[must_use]
    pub fn from_log(log: &str, entry: &str) -> Option<Self> {
        let mut lines = log.lines().skip_while(|line| entry_of(line) != Some(entry));
        lines.next()?;
        let mut resources = Self::default();
        for line in lines.take_while(|line| entry_of(line).is_none()) {
            // Functions that were not inlined follow with frames of their own, and spill for the kernel too.
            if line.contains("spill stores") {
                resources.spill_bytes += before(line, " bytes spill stores") + before(line, " bytes spill loads");
                resources.stack_bytes += before(line, " bytes stack frame");
            }
            if line.contains("Used ") {
                resources.registers = before(line, " registers");
                resources.shared_bytes = before(line, " bytes smem");
            }
        }
        (resources.registers > 0).then_some(resources)
    }
}

/// The entries that the log tells of.
pub(super) fn entries(log: &str) -> Vec<&str> {
    log.lines().filter_map(entry_of).collect()
}

/// The lines that warn.
pub(super) fn warnings(log: &str) -> Vec<String> {
    let warns = |line: &&str| line.contains("warning") && !line.starts_with("Remark:");
    log.lines().filter(warns).map(|line| line.trim().to_owned()).collect()
}

/// `ptxas info    : Compiling entry function 'NAME' for 'sm_80'`.
fn entry_of(line: &str) -> Option<&str> {
    line.split_once("Compiling entry function '")?.1.split('\'').next()
}

/// The number right before `unit`; 0 if it isn't there.
fn before(line: &str, unit: &str) -> u32 {
    let number = line.split_once(unit).and_then(|(head, _)| head.rsplit(|c: char| !c.is_ascii_digit()).next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{KernelResources, entries, warnings};

    /// NVRTC 13.0's, shortened.
    const LOG: &str = "\
norm.cu(1): warning #177-D: variable \"unused\" was declared but never referenced
  extern \"C\" __global__ void k(float* x) { int unused; }
                                               ^

Remark: The warnings can be suppressed with \"-diag-suppress <warning-number>\"

ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k2' for 'sm_90a'
ptxas info    : Function properties for k2
ptxas         .     256 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 34 registers, used 0 barriers, 256 bytes cumulative stack size
ptxas info    : Compile time = 5.324 ms
ptxas info    : Function properties for _Z1ff
ptxas         .     0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 1 barriers, 1024 bytes smem
ptxas info    : Compile time = 2.186 ms
";

    #[test]
    fn each_entry_has_its_own_resources() {
        let k = KernelResources { registers: 8, spill_bytes: 0, shared_bytes: 1024, stack_bytes: 0 };
        assert_eq!(KernelResources::from_log(LOG, "k"), Some(k));
        let k2 = KernelResources { registers: 34, spill_bytes: 40, shared_bytes: 0, stack_bytes: 256 };
        assert_eq!(KernelResources::from_log(LOG, "k2"), Some(k2));
        assert_eq!(KernelResources::from_log(LOG, "k3"), None);
        assert_eq!(KernelResources::from_log("", "k"), None);
        assert_eq!(entries(LOG), ["k2", "k"]);
    }

    #[test]
    fn warnings_are_found_and_remarks_are_none() {
        assert_eq!(warnings(LOG).len(), 1);
        assert!(warnings(LOG)[0].starts_with("norm.cu(1): warning #177-D"));
        assert_eq!(warnings("ptxas warning : Potential Performance Loss: wgmma.mma_async").len(), 1);
        assert!(warnings("ptxas info    : Used 8 registers").is_empty());
    }
}
