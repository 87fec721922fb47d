//! The tiny model against itself and against others, on a CPU.

use std::fs;
use std::path::{Path, PathBuf};

use foveal_benches::accuracy::{
    Along, ModelChoice, Paired, Question, RandomPrompts, judge_questions, judge_random, open_device, read_questions,
};
use foveal_device::{Device, DeviceKind};
use foveal_runtime::LoadFormat;
use foveal_testkit::{Golden, fixtures_dir};
use serde_json::json;

/// Reference answers that end before the 32 tokens at which the reference was cut off.
const WHOLE: usize = 10;

fn device() -> Device {
    open_device(DeviceKind::Cpu, 2).unwrap()
}

fn tiny(load_format: LoadFormat) -> ModelChoice {
    ModelChoice { folder: fixtures_dir().join("tiny"), load_format, quantization: None, kv_cache_dtype: None }
}

/// The reference cases as questions, with what HF transformers answers as what is right. Every other one has its pictures
/// in one file.
fn questions(folder: &Path) -> Vec<Question> {
    let (mut pack, mut lines) = (Vec::new(), String::new());
    for (i, case) in Golden::open("tiny").cases().iter().enumerate() {
        let files: Vec<PathBuf> = case.images.iter().map(|name| Golden::image(name)).collect();
        let images: Vec<_> = files
            .iter()
            .map(|file| {
                if i % 2 == 0 {
                    return json!(file);
                }
                let (offset, bytes) = (pack.len(), fs::read(file).unwrap());
                pack.extend_from_slice(&bytes);
                json!({ "file": "images.bin", "offset": offset, "len_bytes": bytes.len() })
            })
            .collect();
        let line = json!({ "images": images, "question": case.question, "answer": case.text });
        lines += &format!("{line}\n");
    }
    fs::write(folder.join("images.bin"), pack).unwrap();
    fs::write(folder.join("questions.jsonl"), lines).unwrap();
    read_questions(&folder.join("questions.jsonl"), None).unwrap()
}

#[test]
fn a_model_against_itself_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (model, questions) = (tiny(LoadFormat::Auto), questions(folder.path()));
    for along in [Along::Reference, Along::Given] {
        let report = judge_questions(&device(), &model, &model, &questions, along).unwrap();
        println!("{report}");
        assert_eq!(report.paired(), Paired { both: WHOLE, neither: 14 - WHOLE, ..Paired::default() });
        assert!(report.outcomes.iter().all(|outcome| outcome.candidate.starts_with(&outcome.expected)));
        assert_eq!(report.num_same_answers(), 14);
        let divergence = report.divergence().unwrap();
        assert_eq!((divergence.max, divergence.mean), (0.0, 0.0));
        assert_eq!(divergence.num_same_best, divergence.num_rows);
        assert!(divergence.num_rows > 100, "{divergence}");
        let csv = folder.path().join("report.csv");
        report.write_csv(&csv).unwrap();
        assert_eq!(fs::read_to_string(csv).unwrap().lines().count(), 15);
    }
}

#[test]
fn another_model_is_told_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let questions = questions(folder.path());
    let (candidate, reference) = (tiny(LoadFormat::Dummy { seed: 1 }), tiny(LoadFormat::Auto));
    let report = judge_questions(&device(), &candidate, &reference, &questions, Along::Reference).unwrap();
    assert_eq!(report.paired(), Paired { only_reference: WHOLE, neither: 14 - WHOLE, ..Paired::default() });
    let divergence = report.divergence().unwrap();
    assert!(divergence.p50 > 1.0 && divergence.p50 <= divergence.p99, "{divergence}");
}

/// Of dummy weights: nothing but the same seed is 0 apart.
#[test]
fn random_prompts_need_no_answers() {
    let prompts = RandomPrompts { num_prompts: 3, num_tokens: 40, seed: 7 };
    let judge = |a, b| {
        let [a, b] = [a, b].map(|seed| tiny(LoadFormat::Dummy { seed }));
        judge_random(&device(), &a, &b, prompts).unwrap()
    };
    let same = judge(1, 1);
    assert_eq!((same.num_rows, same.num_same_best, same.max), (120, 120, 0.0));
    let other = judge(1, 2);
    assert!(other.num_rows == 120 && other.p50 > 0.1, "{other}");
}

#[test]
fn what_is_not_there_is_refused() {
    let reference = tiny(LoadFormat::Auto);
    let candidate = ModelChoice { quantization: Some("awq".to_owned()), ..reference.clone() };
    let error = judge_questions(&device(), &candidate, &reference, &[], Along::Given).unwrap_err().to_string();
    assert!(error.starts_with("--quantization: `awq`"), "{error}");
    let candidate = ModelChoice { kv_cache_dtype: Some("int8".to_owned()), ..reference.clone() };
    let error = judge_questions(&device(), &candidate, &reference, &[], Along::Given).unwrap_err().to_string();
    assert!(error.starts_with("--kv-cache-dtype: `int8`"), "{error}");
    // Before either is loaded: this folder has nothing else.
    let folder = tempfile::tempdir().unwrap();
    let config = fs::read_to_string(reference.folder.join("config.json")).unwrap();
    let config = config.replace("\"vocab_size\": 1024", "\"vocab_size\": 1100");
    fs::write(folder.path().join("config.json"), config).unwrap();
    let candidate = ModelChoice { folder: folder.path().to_owned(), ..reference.clone() };
    let error = judge_questions(&device(), &candidate, &reference, &[], Along::Given).unwrap_err().to_string();
    assert!(error.contains("1100 tokens in its vocabulary, the reference 1024"), "{error}");
    let many = RandomPrompts { num_prompts: usize::MAX, num_tokens: 2, seed: 1 };
    let error = judge_random(&device(), &reference, &reference, many).unwrap_err().to_string();
    assert!(error.contains("too many to keep: at most 1048576"), "{error}");
}
