use super::*;

fn arguments(pairs: &[&str]) -> BuildArguments {
    let pairs: Vec<_> = pairs.iter().map(|&pair| pair.to_owned()).collect();
    BuildArguments::new(None, &pairs, false, &mut Vec::new()).unwrap()
}

fn read(text: &str) -> Recipe {
    parse(text, &BuildArguments::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// The first stage of a recipe with this below its header.
fn sections(text: &str) -> Stage {
    read(&format!("Bootstrap: scratch\n{text}")).stages.remove(0)
}

/// Line, column and message of every problem.
fn problems(text: &str) -> Vec<(usize, usize, String)> {
    let error = parse(text, &BuildArguments::default()).unwrap_err();
    error.problems.into_iter().map(|problem| (problem.line, problem.column, problem.message)).collect()
}

#[test]
fn a_header_is_keys_and_values_with_comments_and_continuations() {
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("Bootstrap: docker\nFrom: a/b:c\n", &[("bootstrap", "docker"), ("from", "a/b:c")]),
        ("# x\nBOOTSTRAP:docker # why\n\n  from :  x  \n", &[("bootstrap", "docker"), ("from", "x")]),
        ("bootstrap: yum\r\ninclude: a \\\r\n   b\\\r\n c\r\n", &[("bootstrap", "yum"), ("include", "a bc")]),
        ("bootstrap: yum\ninclude: \\\n a\n", &[("bootstrap", "yum"), ("include", "a")]),
        ("bootstrap: yum\ninclude: a \\\n# end\nfrom: x\n", &[("bootstrap", "yum"), ("from", "x"), ("include", "a ")]),
        ("bootstrap: zypper\nproductpgp: a\\n\\\n b\n", &[("bootstrap", "zypper"), ("productpgp", "a\nb")]),
        ("bootstrap: zypper\notherurl12: http://x\n", &[("bootstrap", "zypper"), ("otherurl12", "http://x")]),
        ("bootstrap: docker\nfrom: a\nfrom: b", &[("bootstrap", "docker"), ("from", "b")]),
    ];
    for (text, expected) in cases {
        let header = read(text).stages.remove(0).header;
        let expected = expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        assert_eq!(header, expected, "{text}");
    }
}

#[test]
fn a_section_is_everything_up_to_the_next_line_that_begins_with_a_percent_sign() {
    let stage = sections("%POST\n  a % b\n\n# c\n%environment\nexport A=1\n%post\n  again");

    assert_eq!(stage.post.text, "  a % b\n\n# c\n  again\n");
    assert_eq!(stage.environment.text, "export A=1\n");
}

#[test]
fn the_last_arguments_of_a_section_count_up_to_a_comment() {
    let cases = [
        ("%post\n a\n", ""),
        ("%post -c /bin/bash -e # why\n a\n", "-c /bin/bash -e"),
        ("%post -x\n a\n%post\n b\n", "-x"),
        ("%post -x\n a\n%post -v\n b\n", "-v"),
        ("%post\t-x\n a\n", "-x"),
    ];
    for (text, expected) in cases {
        assert_eq!(sections(text).post.arguments, expected, "{text}");
    }
}

#[test]
fn files_are_a_source_and_perhaps_a_destination() {
    let cases = [
        ("one", Some(("one", ""))),
        ("  one   /two  ", Some(("one", "/two"))),
        ("\"a b\" '/c d'", Some(("a b", "/c d"))),
        ("a\\ b /c", Some(("a b", "/c"))),
        ("dir/*.[ch] /src/ # comment", Some(("dir/*.[ch]", "/src/"))),
        ("one # comment", Some(("one", ""))),
        ("a#b", Some(("a#b", ""))),
        ("\\*", Some(("\\*", ""))),
        ("# comment", None),
        ("", None),
    ];
    for (line, expected) in cases {
        let files = sections(&format!("%files\n{line}\n")).files;
        let found = files[0].transfers.first().map(|one| (one.source.as_str(), one.destination.as_str()));
        assert_eq!(found, expected, "{line}");
    }
}

#[test]
fn files_are_kept_apart_by_the_stage_that_they_are_from() {
    let text =
        "Bootstrap: scratch\nStage: one\nBootstrap: scratch\n%files from one # x\na\n%files\nb\n%files from one\nc\n";

    let files = &read(text).stages[1].files;

    let found: Vec<_> = files.iter().map(|files| (files.from.as_deref(), files.transfers.len())).collect();
    assert_eq!(found, [(Some("one"), 2), (None, 1)]);
}

#[test]
fn labels_are_a_key_and_the_rest_of_the_line() {
    let labels = sections("%labels\n A one  two\n # x\n\n B\n C\ttab\n%labels\n A other\n").labels;

    let found: Vec<_> = labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(found, [("A", "other"), ("B", ""), ("C", "tab")]);
}

#[test]
fn apps_are_in_the_order_of_their_first_section() {
    let text = "%apprun two\n run\n%appinstall one\n i\n%appinstall two\n j\n%appfiles one\n a b\n%applabels two\n K v\n\
                %appenv two\n e\n%apptest two\n t\n%apphelp two\n h\n%appstart two\n s\n";

    let apps = sections(text).apps;

    assert_eq!(apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>(), ["two", "one"]);
    assert_eq!((apps[0].run.as_str(), apps[0].install.as_str(), apps[0].start.as_str()), (" run\n", " j\n", " s\n"));
    assert_eq!(apps[0].labels["K"], "v");
    assert_eq!(apps[1].files, [Transfer { source: "a".into(), destination: "b".into() }]);
}

#[test]
fn every_line_that_begins_with_bootstrap_begins_a_stage() {
    let recipe = read("# first\n\nbootstrap: scratch\nstage: a\n%post\n x\nBOOTSTRAP: docker\nfrom: y\n%post\n z\n");

    let found: Vec<_> = recipe.stages.iter().map(|stage| (stage.agent(), stage.post.text.as_str())).collect();
    assert_eq!(found, [("scratch".to_owned(), " x\n"), ("docker".to_owned(), " z\n")]);
}

#[test]
fn arguments_are_put_in_place() {
    let text = "Bootstrap: docker\nFrom: x:{{ VERSION }}\n%arguments\n VERSION=1\n NAME=v{{VERSION}}\n%post\n\
                echo {{NAME}} {{  VERSION  }} {{ not one }} {{{VERSION}}}\n# {{ UNKNOWN }}\n#!{{ VERSION }}\n";

    let plain = read(text);
    let given = parse(text, &arguments(&["VERSION=2 # x"])).unwrap();

    assert_eq!(plain.stages[0].header["from"], "x:1");
    assert_eq!(plain.stages[0].post.text, "echo v1 1 {{ not one }} {1}\n# {{ UNKNOWN }}\n#!1\n");
    assert_eq!(given.stages[0].post.text, "echo v2 # x 2 # x {{ not one }} {2 # x}\n# {{ UNKNOWN }}\n#!2 # x\n");
    assert!(plain.text.contains("From: x:1\n") && plain.text.contains(" NAME=v1\n"), "{}", plain.text);
}

#[test]
fn the_command_line_wins_over_the_file_and_the_file_over_the_recipe() {
    let text = "Bootstrap: scratch\n%arguments\nA=recipe\nB=recipe\nC=recipe\n%post\n{{A}} {{B}} {{C}}\n";
    let file = "# values\nA = file\n\nB=file\nnonsense\n";
    let mut warnings = Vec::new();

    let given = BuildArguments::new(Some(file), &["A=line".into()], false, &mut warnings).unwrap();

    assert_eq!(parse(text, &given).unwrap().stages[0].post.text, "line file recipe\n");
    assert_eq!(warnings, ["Skipping \"nonsense\" in build arg file: \"nonsense\" is not a key=value pair"]);
}

#[test]
fn arguments_that_nobody_uses_are_refused_or_told_of() {
    let text = "Bootstrap: scratch\n";
    let lenient = BuildArguments::new(None, &["A=1".into()], true, &mut Vec::new()).unwrap();

    let refused = parse(text, &arguments(&["A=1", "B=2"])).unwrap_err().to_string();

    assert!(refused.contains("unused build args: A, B. Use option --warn-unused-build-args"), "{refused}");
    assert_eq!(parse(text, &lenient).unwrap().warnings, ["unused build args: A"]);
    assert!(BuildArguments::new(None, &["A".into()], false, &mut Vec::new()).is_err());
}

#[test]
fn problems_have_a_place_and_say_what_was_expected() {
    let cases: &[(&str, usize, usize, &str)] = &[
        ("Bootstrap: scratch\nFromm: x\n", 2, 1, "did you mean \"from\"?"),
        ("Bootstrap: scratch\nfoo bar\n", 2, 1, "expected a header line \"Key: value\""),
        ("Bootstrap: scratch\n%pots\n x\n", 2, 1, "did you mean %post?"),
        ("Bootstrap: scratch\n%nothing-like\n x\n", 2, 1, "invalid section(s) specified: nothing-like"),
        ("Bootstrap: scratch\n%post\n  printf '\n  %s'\n", 4, 3, "begins in the first column"),
        ("Bootstrap: scratch\n% post\n", 2, 1, "invalid section(s)"),
        ("%post\n x\n", 1, 1, "need a header above them"),
        ("From: x\nBootstrap: docker\n", 1, 1, "need a header"),
        ("Bootstrap: scratch\n%files foo\n a\n", 2, 8, "\"from STAGE\""),
        ("Bootstrap: scratch\n%files\n a b c\n", 3, 6, "at most one destination"),
        ("Bootstrap: scratch\n%files\n \"a b\n", 3, 2, "never closed"),
        ("Bootstrap: scratch\n%files from nowhere\n a\n", 2, 13, "no stage nowhere"),
        ("Bootstrap: scratch\nStage: a\n%files from a\n x\n", 3, 13, "no stage a"),
        ("Bootstrap: scratch\nStage: a\nBootstrap: scratch\nStage: a\n", 4, 8, "already"),
        ("Bootstrap: scratch\n%appinstall\n x\n", 2, 1, "name of an app"),
        ("Bootstrap: scratch\n%apprun ../x\n x\n", 2, 9, "name of a directory"),
        ("Bootstrap: scratch\n%post\n é {{ X }}\n", 3, 4, "build var X is not defined"),
    ];
    for (text, line, column, message) in cases {
        let found = problems(text);
        let matches = found.iter().any(|(at, from, said)| at == line && from == column && said.contains(message));
        assert!(matches, "{text}\n{found:?}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    assert_eq!(problems("Bootstrap: scratch\nfoo: x\n%bar\n%post\n{{ X }}\n{{ Y }}\n").len(), 2);
    assert_eq!(problems("Bootstrap: scratch\nfoo: x\nBootstrap: scratch\n%bar\n").len(), 2);
}

#[test]
fn a_problem_is_shown_below_its_line() {
    let error = parse("Bootstrap: scratch\n%files foo\n", &BuildArguments::default()).unwrap_err().of("r.def");

    let expected = "r.def:2:8: expected nothing, or \"from STAGE\" for files of a stage above, after %files\n    \
                    2 | %files foo\n      |        ^^^";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn what_is_empty_is_no_recipe() {
    for text in ["", "\n\n", "# only a comment\n"] {
        let error = parse(text, &BuildArguments::default()).unwrap_err().to_string();
        assert!(error.contains("empty"), "{error}");
    }
}

#[test]
fn json_says_the_same_as_a_recipe() {
    let json = r#"{"header": {"bootstrap": "docker", "from": "x"},
        "imageData": {"metadata": null, "labels": {"A": "b"},
            "imageScripts": {"runScript": {"args": "-c /bin/bash # x", "script": "echo run\n"}, "help": {"script": ""}}},
        "buildData": {"files": [{"args": "", "files": [{"source": "a", "destination": "/b"}]}],
            "buildScripts": {"post": {"args": "", "script": "true\n"}}},
        "customData": {"apprun two": "t\n", "apprun one": "o\n"}, "appOrder": ["two", "one"]}"#;

    let from_json = from_json(json).unwrap();
    let again = read(&from_json.text);

    let stage = &from_json.stages[0];
    assert_eq!((stage.agent().as_str(), stage.header["from"].as_str()), ("docker", "x"));
    assert_eq!((stage.runscript.arguments.as_str(), stage.post.text.as_str()), ("-c /bin/bash", "true\n"));
    assert_eq!(stage.apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>(), ["two", "one"]);
    assert_eq!(again.stages[0].labels, stage.labels);
    assert_eq!(again.stages[0].files[0].transfers, stage.files[0].transfers);
    for wrong in
        ["", "[]", "{\"header\": {}}", "{\"header\": {\"bootstrap\": \"x\", \"foo\": \"y\"}}", "{\"header\": 1}"]
    {
        assert!(super::from_json(wrong).is_err(), "{wrong}");
    }
}

/// Small deterministic random numbers (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

#[test]
fn no_text_makes_the_parser_panic() {
    let seed = "Bootstrap: docker\nFrom: a \\\n b # c\nStage: é\n%arguments\n A=1\n%files from é\n \"a b\" 'c' \\ d\n%post -c x\n\
                {{ A }} {{{B}} }}\n%appinstall x y\n%labels\n A b\nbootstrap: x\n%files from é # \n x\n%%\n% \n";
    let pieces =
        ["%", "{{", "}}", "\n", "\\", "\"", "'", "#", ":", "\r\n", "é", "\0", " ", "bootstrap:", "%files", "from"];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let given = arguments(&["A={{ B }}", "B={{ A }}{{ A }}"]);

    for _ in 0..4000 {
        let mut characters: Vec<char> = seed.chars().collect();
        for _ in 0..1 + random.below(6) {
            let (at, piece) = (random.below(characters.len()), pieces[random.below(pieces.len())]);
            let end = (at + random.below(8)).min(characters.len());
            characters.splice(at..end, piece.chars());
        }
        let text: String = characters.into_iter().collect();
        // Both outcomes are fine; what is said of a problem can be printed.
        if let Err(error) = parse(&text, &given) {
            let _ = error.to_string();
        }
        let _ = from_json(&text);
    }
}
