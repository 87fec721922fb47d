//! The table of ideas on a CPU, as small as it goes.

use foveal_benches::gpu::ModelForm;
use foveal_benches::ideas::{Header, Line, Machine, Options, Outcome, Scale, Section, Table, run};
use foveal_runtime::LoadFormat;
use foveal_testkit::fixtures_dir;

/// The table of a model of `fixtures/tiny`'s family.
fn table(sections: &[Section], load_format: LoadFormat) -> Table {
    let form = ModelForm::default();
    let options = Options { model: fixtures_dir().join("tiny"), load_format, form, scale: Scale::Smallest };
    let mut table = Table::new(Header::default(), None);
    run(Machine::cpu(2).unwrap(), &options, sections, &mut table).unwrap();
    table
}

fn is_measured(line: &Line) -> bool {
    matches!(&line.outcome, Outcome::Measured { gain, with, .. } if gain.is_finite() && with.median_us > 0.0)
}

/// Every section gives its rows, or says why not; nothing fails.
#[test]
fn a_cpu_has_rows_of_what_it_can_do() {
    let table = table(&Section::ALL, LoadFormat::Auto);
    let failed: Vec<String> =
        table.lines().iter().filter(|line| matches!(line.outcome, Outcome::Failed(_))).map(Line::to_string).collect();
    assert_eq!((failed.as_slice(), table.num_failed()), (&[][..], 0));
    let rows = |name: &str| table.lines().iter().filter(|line| line.idea.name == name).collect::<Vec<_>>();
    let measured = [
        ("cos and sin of a picture's patches", 3),
        ("positions of a picture's patches", 3),
        ("rounding to FP8", 6),
        ("preparing a request", 2),
        ("a step of text", 3),
    ];
    for (name, count) in measured {
        assert!(rows(name).len() == count && rows(name).into_iter().all(is_measured), "{name}: {:?}", rows(name));
    }
    // A GPU's affairs, each with a reason.
    for name in ["copies to the GPU", "CUDA graphs", "running ahead", "QK-norm + RoPE + cache"] {
        let [line] = rows(name)[..] else { panic!("{name}: {:?}", rows(name)) };
        assert!(matches!(&line.outcome, Outcome::LeftOut(reason) if !reason.is_empty()), "{line}");
    }
    assert_eq!(table.lines().len(), 3 + 3 + 6 + 2 + 3 + 4);
}

/// Sections that were not asked for have no rows.
#[test]
fn sections_are_chosen() {
    let table = table(&[Section::Fused], LoadFormat::Dummy { seed: 1 });
    assert!(table.lines().iter().all(|line| !line.idea.name.contains("picture")) && table.lines().len() == 7);
}

/// One that fails is a row, and the others are measured.
#[test]
fn a_failure_hides_no_other_section() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixtures_dir().join("tiny/config.json"), folder.path().join("config.json")).unwrap();
    let json = folder.path().join("table.json");
    let options = Options {
        model: folder.path().to_owned(),
        load_format: LoadFormat::Auto,
        form: ModelForm::default(),
        scale: Scale::Smallest,
    };
    let mut table = Table::new(Header::default(), Some(json.clone()));
    // Preparing needs a tokenizer, which isn't there.
    run(Machine::cpu(1).unwrap(), &options, &[Section::Text, Section::Fused], &mut table).unwrap();
    assert_eq!(table.num_failed(), 1);
    assert!(table.lines()[0].to_string().contains("tokenizer.json"), "{}", table.lines()[0]);
    assert_eq!(table.lines().iter().filter(|line| is_measured(line)).count(), 3 + 6);
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(saved["lines"].as_array().unwrap().len(), table.lines().len());
}
