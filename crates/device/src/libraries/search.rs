//! The folders that are searched for NVIDIA's libraries.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{LIBRARIES_VARIABLE, LibraryKind};

/// Where CUDA's wheels put libraries, below `site-packages`: 13 has one folder for all, and before there was one each.
const WHEEL_FOLDERS: [&str; 3] = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cublas/lib"];

/// Where a driver's libraries are that the loader doesn't know of: containers, WSL, NixOS.
const DRIVER_FOLDERS: [&str; 3] = ["usr/local/nvidia/lib64", "usr/lib/wsl/lib", "run/opengl-driver/lib"];

/// The machine as the search sees it.
pub(super) struct Places<'a> {
    /// `/`, or a test's folder.
    pub(super) root: PathBuf,
    /// The environment.
    pub(super) var: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Places<'static> {
    /// This machine.
    pub(super) fn here() -> Self {
        Self { root: PathBuf::from("/"), var: &|name| std::env::var_os(name) }
    }
}

impl Places<'_> {
    /// The folders that the user named: they go before everything else.
    pub(super) fn named(&self) -> Vec<PathBuf> {
        let given = (self.var)(LIBRARIES_VARIABLE).unwrap_or_default();
        std::env::split_paths(&given).filter(|folder| !folder.as_os_str().is_empty()).collect()
    }

    /// The folders to search after those of the loader, in order, whether they exist or not.
    pub(super) fn usual(&self, kind: LibraryKind) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        if kind == LibraryKind::Driver {
            folders.extend(DRIVER_FOLDERS.map(|folder| self.root.join(folder)));
            return folders;
        }
        for toolkit in ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(|name| self.folder_of(name)) {
            folders.extend([toolkit.join("lib64"), toolkit.join("lib")]);
        }
        for toolkit in numbered(&self.root.join("usr/local"), "cuda") {
            folders.push(toolkit.join("lib64"));
        }
        folders.extend(["opt/cuda/lib64", "opt/cuda/lib", "usr/local/nvidia/lib64"].map(|f| self.root.join(f)));
        folders.extend(self.folder_of("CONDA_PREFIX").map(|prefix| prefix.join("lib")));
        for packages in self.site_packages() {
            folders.extend(WHEEL_FOLDERS.map(|folder| packages.join(folder)));
        }
        let mut unique: Vec<PathBuf> = Vec::with_capacity(folders.len());
        for folder in folders {
            if !unique.contains(&folder) {
                unique.push(folder);
            }
        }
        unique
    }

    /// Where Python's packages may lie: an active environment first, then the user's, the PATH's and the system's.
    fn site_packages(&self) -> Vec<PathBuf> {
        let mut libs = Vec::new();
        libs.extend(self.folder_of("VIRTUAL_ENV").map(|prefix| prefix.join("lib")));
        libs.extend(self.folder_of("HOME").map(|home| home.join(".local/lib")));
        libs.extend(self.python_on_path().into_iter().map(|prefix| prefix.join("lib")));
        libs.extend(["usr/local/lib", "usr/lib"].map(|lib| self.root.join(lib)));
        let pythons = libs.iter().flat_map(|lib| numbered(lib, "python3"));
        pythons.flat_map(|python| [python.join("site-packages"), python.join("dist-packages")]).collect()
    }

    /// The prefixes of the first `python3` of the PATH: of its environment, and of the Python that the environment is
    /// made of.
    fn python_on_path(&self) -> Vec<PathBuf> {
        let path = (self.var)("PATH").unwrap_or_default();
        let Some(python) = std::env::split_paths(&path).map(|dir| dir.join("python3")).find(|file| file.is_file())
        else {
            return Vec::new();
        };
        let prefix = |python: &Path| python.parent().and_then(Path::parent).map(Path::to_owned);
        [prefix(&python), python.canonicalize().ok().and_then(|python| prefix(&python))].into_iter().flatten().collect()
    }

    fn folder_of(&self, variable: &str) -> Option<PathBuf> {
        (self.var)(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
    }
}

/// The entries of `folder` whose names begin with `prefix`, newest version first: cuda-13.1, cuda-13.0, cuda.
fn numbered(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<(Vec<u32>, PathBuf)> = names(folder)
        .into_iter()
        .filter(|name| name.starts_with(prefix))
        .map(|name| (numbers(&name), folder.join(name)))
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

/// The names in a folder; none if it can't be read.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The numbers in a name, in order.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::ffi::OsString;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::{LibraryKind, Places};

    fn usual(root: &Path, kind: LibraryKind, vars: &[(&str, PathBuf)]) -> Vec<PathBuf> {
        let vars: HashMap<&str, OsString> = vars.iter().map(|(name, value)| (*name, value.into())).collect();
        let var = |name: &str| vars.get(name).cloned();
        Places { root: root.to_owned(), var: &var }.usual(kind)
    }

    fn position(folders: &[PathBuf], folder: &Path) -> usize {
        let position = folders.iter().position(|f| f == folder);
        position.unwrap_or_else(|| panic!("{} is not among {folders:#?}", folder.display()))
    }

    #[test]
    fn toolkits_go_before_wheels_and_new_before_old() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for folder in ["usr/local/cuda-12.4", "usr/local/cuda-13.0", "usr/local/cuda-13.10", "usr/local/lib/python3.9"]
        {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::create_dir_all(root.join("usr/local/lib/python3.11")).unwrap();
        let home = root.join("my cuda");
        let folders = usual(root, LibraryKind::Nvrtc, &[("CUDA_HOME", home.clone())]);
        let order = [
            home.join("lib64"),
            root.join("usr/local/cuda-13.10/lib64"),
            root.join("usr/local/cuda-13.0/lib64"),
            root.join("usr/local/cuda-12.4/lib64"),
            root.join("opt/cuda/lib64"),
            root.join("usr/local/lib/python3.11/dist-packages/nvidia/cu13/lib"),
            root.join("usr/local/lib/python3.9/site-packages/nvidia/cublas/lib"),
        ];
        assert!(order.iter().map(|folder| position(&folders, folder)).is_sorted(), "{folders:#?}");
    }

    #[test]
    fn the_packages_of_an_environment_are_found_with_and_without_activating_it() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let wheel = root.join("venv/lib/python3.12/site-packages/nvidia/cu13/lib");
        fs::create_dir_all(&wheel).unwrap();
        fs::create_dir_all(root.join("venv/bin")).unwrap();
        fs::write(root.join("venv/bin/python3"), "").unwrap();
        position(&usual(root, LibraryKind::Nvrtc, &[("VIRTUAL_ENV", root.join("venv"))]), &wheel);
        position(&usual(root, LibraryKind::CublasLt, &[("PATH", root.join("venv/bin"))]), &wheel);
        assert!(!usual(root, LibraryKind::Nvrtc, &[]).contains(&wheel));
    }

    #[cfg(unix)]
    #[test]
    fn the_python_behind_a_link_is_searched_too() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let wheel = root.join("real/lib/python3.12/site-packages/nvidia/cu13/lib");
        fs::create_dir_all(&wheel).unwrap();
        fs::create_dir_all(root.join("real/bin")).unwrap();
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::write(root.join("real/bin/python3.12"), "").unwrap();
        std::os::unix::fs::symlink(root.join("real/bin/python3.12"), root.join("bin/python3")).unwrap();
        position(&usual(&root, LibraryKind::Nvrtc, &[("PATH", root.join("bin"))]), &wheel);
    }

    #[test]
    fn a_driver_is_never_taken_from_a_toolkit_or_a_wheel() {
        let folders = usual(Path::new("/nowhere"), LibraryKind::Driver, &[("CUDA_HOME", "/cuda".into())]);
        assert!(folders.iter().all(|folder| folder.starts_with("/nowhere")), "{folders:?}");
    }

    #[test]
    fn no_folder_is_searched_twice() {
        let vars = [("CUDA_HOME", PathBuf::from("/cuda")), ("CUDA_PATH", PathBuf::from("/cuda"))];
        let folders = usual(Path::new("/nowhere"), LibraryKind::Nvrtc, &vars);
        assert_eq!(folders.iter().filter(|folder| folder.starts_with("/cuda")).count(), 2, "{folders:?}");
    }

    #[test]
    fn several_folders_can_be_named() {
        let var = |name: &str| (name == "FOVEAL_CUDA_LIBS").then(|| OsString::from("/a:/b"));
        let places = Places { root: PathBuf::from("/"), var: &var };
        assert_eq!(places.named(), [PathBuf::from("/a"), PathBuf::from("/b")]);
        let places = Places { root: PathBuf::from("/"), var: &|_| None };
        assert!(places.named().is_empty());
    }
}
