//! What `doctor` says about a Mac.

use boxlite_runtime::mac::{Facts, LEAST_VERSION, Problem, Signature, System};

use super::{Finding, Verdict};

/// One finding for each thing that boxes need of a Mac. What is missing has the verdict `lacking`: boxes may still run in
/// the software host.
pub(super) fn findings(facts: &Facts, lacking: Verdict) -> Vec<Finding> {
    let problems = facts.problems();
    let judge = |check, is_about: fn(&Problem) -> bool, otherwise: Option<String>| match problems
        .iter()
        .find(|problem| is_about(problem))
    {
        Some(problem) => {
            let finding = Finding::new(check, lacking, problem.to_string());
            Some(problem.remedy().into_iter().fold(finding, Finding::remedy))
        }
        None => otherwise.map(|text| Finding::new(check, Verdict::Ok, text)),
    };
    let System { version, cpu, is_arm64, has_hypervisor, .. } = &facts.system;
    let unknown = || format!("an unknown release (boxes need {LEAST_VERSION})");
    let version = version.clone().unwrap_or_else(unknown);
    let cpu = cpu.clone().unwrap_or_else(|| "Apple silicon".to_owned());
    let supported =
        (*is_arm64 && *has_hypervisor).then(|| "supported (kern.hv_support)".to_owned());
    let entitled = facts.launcher.as_ref().and_then(|(path, signature)| {
        matches!(signature, Ok(Signature::Entitled)).then(|| format!("in {}", path.display()))
    });
    [
        judge("macOS", |it| matches!(it, Problem::Version(_)), Some(version)),
        judge("chip", |it| matches!(it, Problem::Cpu(_) | Problem::Translated), Some(cpu)),
        judge("hypervisor", |it| matches!(it, Problem::NoHypervisor), supported),
        judge(
            "entitlement",
            |it| matches!(it, Problem::NotEntitled(_) | Problem::Signature { .. }),
            entitled,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let system = System {
            version: Some("15.1".into()),
            cpu: Some("Apple M2".into()),
            is_arm64: true,
            is_translated: false,
            has_hypervisor: true,
        };
        Facts { system, launcher: Some(("/opt/boxlite-vmm".into(), Ok(Signature::Entitled))) }
    }

    fn of<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
        findings.iter().find(|finding| finding.check == check).unwrap()
    }

    #[test]
    fn a_mac_that_has_everything_is_described() {
        let found = findings(&facts(), Verdict::Ok);
        assert!(found.iter().all(|finding| finding.verdict == Verdict::Ok), "{found:?}");
        let checks: Vec<_> = found.iter().map(|finding| finding.check).collect();
        assert_eq!(checks, ["macOS", "chip", "hypervisor", "entitlement"]);
        assert_eq!(of(&found, "macOS").message, "15.1");
        assert_eq!(of(&found, "chip").message, "Apple M2");
        assert!(of(&found, "entitlement").message.contains("/opt/boxlite-vmm"));
    }

    #[test]
    fn each_lack_is_a_finding_of_its_own_with_its_remedy() {
        let mut lacking = facts();
        lacking.system.version = Some("14.2".into());
        lacking.launcher = Some(("/opt/boxlite-vmm".into(), Ok(Signature::Missing)));
        let found = findings(&lacking, Verdict::Fail);
        let old = of(&found, "macOS");
        assert_eq!(
            (old.verdict, &*old.remedies[0]),
            (Verdict::Fail, "update macOS to 15 or later")
        );
        let unsigned = of(&found, "entitlement");
        assert_eq!(unsigned.verdict, Verdict::Fail);
        assert!(unsigned.remedies[0].contains("cargo xtask sign"), "{unsigned:?}");
        assert_eq!(of(&found, "chip").verdict, Verdict::Ok);
    }

    #[test]
    fn nothing_is_claimed_of_a_hypervisor_that_another_cpu_reports() {
        let mut intel = facts();
        intel.system.is_arm64 = false;
        intel.system.cpu = Some("Intel".into());
        let found = findings(&intel, Verdict::Note);
        let chip = of(&found, "chip");
        assert_eq!((chip.verdict, chip.remedies.len()), (Verdict::Note, 0));
        assert!(found.iter().all(|finding| finding.check != "hypervisor"), "{found:?}");
    }
}
