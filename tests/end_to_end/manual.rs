use crate::support::environment::TestEnvironment;

#[test]
fn every_command_that_the_help_lists_has_a_manual_page() {
    let environment = TestEnvironment::new();
    let help = environment.siphon(&["--help"]).stdout();
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<_> =
        listed.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect();
    assert!(commands.contains(&"exec"), "{help}");

    environment.siphon(&["man", "pages"]).stdout();

    for command in &commands {
        let page = environment.work().join(format!("pages/siphon-{command}.1"));
        let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(text.contains(".SH NAME"), "{command}");
    }
    // Verbs of commands have their own.
    assert!(environment.work().join("pages/siphon-instance-start.1").exists());
    for page in std::fs::read_dir(environment.work().join("pages")).unwrap() {
        let page = page.unwrap().file_name().into_string().unwrap();
        let of = |name: &&str| page.starts_with(&format!("siphon-{name}"));
        assert!(page == "siphon.1" || commands.iter().any(of), "{page} is of no command that the help lists");
    }
    assert!(std::fs::read_to_string(environment.work().join("pages/siphon-exec.1")).unwrap().contains("\\-\\-nv"));
    let page = environment.siphon(&["man"]).stdout();
    assert!(page.contains("siphon \\- Runs container images"), "{page}");
}

#[test]
fn a_shell_completes_commands_and_options() {
    let environment = TestEnvironment::new();
    let line = "eval \"$(siphon completion bash)\"; COMP_WORDS=(siphon exec --nv); COMP_CWORD=2; \
                _siphon siphon --nv exec; echo ${COMPREPLY[*]}; \
                COMP_WORDS=(siphon doc); COMP_CWORD=1; COMPREPLY=(); _siphon siphon doc siphon; echo ${COMPREPLY[*]}";

    let output = environment.shell(&format!("bash -c '{line}'")).stdout();

    assert_eq!(output, "--nv --nvccli\ndoctor");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(environment.siphon(&["completion", shell]).stdout().contains("doctor"), "{shell}");
    }
}
