//! `foveal doctor`, on whatever machine the tests run.

mod common;

use common::{command, foveal};

#[test]
fn a_machine_with_a_cpu_can_be_used() {
    let outcome = foveal(["doctor"]);
    let page = outcome.answer();
    assert!(page.starts_with(concat!("foveal ", env!("CARGO_PKG_VERSION"), " runs on c")), "{page}");
    for line in
        ["CPU threads", "NVIDIA driver", "libcuda.so.1", "libnvrtc.so.13", "libcublasLt.so.13", "kernels kept in"]
    {
        assert!(page.contains(line), "{line}: {page}");
    }
    assert_eq!(outcome.stderr, "");
}

#[test]
fn help_names_the_environment() {
    let help = foveal(["doctor", "--help"]);
    assert!(help.answer().contains("FOVEAL_CUDA_LIBS") && help.answer().contains("FOVEAL_CACHE_DIR"), "{help:?}");
}

#[test]
fn json_holds_the_same() {
    let json = foveal(["doctor", "--json"]).json();
    let device = json["device"].as_str().unwrap();
    assert!(device == "cpu" || device == "cuda:0", "{device}");
    assert!(json["cpu"]["threads"].as_u64().unwrap() > 0);
    assert!(device == "cpu" || !json["gpus"].as_array().unwrap().is_empty(), "{json}");
    for problem in json["problems"].as_array().unwrap() {
        assert!(problem["what"].is_string() && problem["remedy"].is_string(), "{problem}");
    }
    for library in [&json["driver"]["library"], &json["nvrtc"], &json["cublaslt"]] {
        assert_eq!(library["path"].is_null(), library["version"].is_null(), "{library}");
        assert_eq!(library["path"].is_null(), library.get("looked_in").is_some(), "{library}");
    }
}

#[test]
fn a_folder_that_is_named_is_searched_and_a_wrong_version_in_it_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libnvrtc.so.12"), "").unwrap();
    let output = command(["doctor", "--json"]).env("FOVEAL_CUDA_LIBS", folder.path()).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    // Where a right one is found elsewhere, there is nothing to tell.
    if json["nvrtc"]["path"].is_null() {
        assert!(
            json["nvrtc"]["refused"][0].as_str().unwrap().contains("libnvrtc.so.12 is of another version"),
            "{json}"
        );
        assert_eq!(json["nvrtc"]["looked_in"][0], folder.path().to_str().unwrap());
    }
}

#[test]
fn the_cache_is_where_the_user_says() {
    let folder = tempfile::tempdir().unwrap();
    let report = |place: &std::path::Path| -> serde_json::Value {
        let output = command(["doctor", "--json"]).env("FOVEAL_CACHE_DIR", place).output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let json = report(folder.path());
    assert_eq!(json["cubins"]["cache"], folder.path().join("cubins").to_str().unwrap());
    assert_eq!(json["cubins"]["cache_is_writable"], true);
    assert!(folder.path().read_dir().unwrap().next().is_none(), "nothing is left behind");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(report(&file)["cubins"]["cache_is_writable"], false);
}
