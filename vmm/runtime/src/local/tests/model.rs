//! The home against a model: after any sequence of creating, renaming, removing, starting and stopping boxes, with a
//! crash between any two steps, the home opens and has the expected boxes.

use std::collections::BTreeMap;
use std::fs::File;

use boxlite_contract::status::{BoxEnd, EndCause, Phase};
use boxlite_kernel::GuestFiles;
use proptest::prelude::*;
use serde_json::json;

use crate::local::*;
use crate::{BoxOptions, BoxState, FailureReason};

/// An operation on the home. Numbers choose a name, or one of the existing boxes.
#[derive(Clone, Debug)]
enum Step {
    Make(u8),
    /// The process dies before the folder has its final name.
    MakeAndCrashEarly(u8),
    /// The process dies when the folder has its final name, and the database is lost.
    MakeAndCrashLate(u8),
    /// The process dies after it has created a box that removes itself. A power failure may lose the box's config.
    MakeThrowAwayAndCrash(u8, bool),
    Rename(u8, u8),
    /// The process dies when the database has the new name and the folder the old one.
    RenameAndCrash(u8, u8),
    /// The process dies when a file is about to replace another one.
    ReplaceAndCrash(u8),
    Remove(u8),
    /// The process dies when the folder has its name for removal.
    RemoveAndCrash(u8),
    /// A process takes the box's lock and records that the box runs.
    Start(u8),
    /// That process records an end and exits.
    End(u8),
    /// That process dies.
    Die(u8),
    /// Another process opens the home.
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let n = || 0_u8..4;
    let step = prop_oneof![
        3 => n().prop_map(Step::Make),
        1 => n().prop_map(Step::MakeAndCrashEarly),
        1 => n().prop_map(Step::MakeAndCrashLate),
        1 => (n(), n()).prop_map(|(which, name)| Step::Rename(which, name)),
        1 => (n(), n()).prop_map(|(which, name)| Step::RenameAndCrash(which, name)),
        1 => (n(), any::<bool>()).prop_map(|(name, cut)| Step::MakeThrowAwayAndCrash(name, cut)),
        1 => n().prop_map(Step::ReplaceAndCrash),
        1 => n().prop_map(Step::Remove),
        1 => n().prop_map(Step::RemoveAndCrash),
        2 => n().prop_map(Step::Start),
        1 => n().prop_map(Step::End),
        1 => n().prop_map(Step::Die),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..24)
}

/// A home with its expected content.
struct World {
    dir: tempfile::TempDir,
    local: Local,
    /// Name and state of each box, by its ID.
    model: BTreeMap<String, (String, BoxState)>,
    /// The locks of running processes.
    locks: HashMap<String, File>,
    made: u32,
}

/// Opens a home in `dir`, without guest files.
pub(super) fn open(dir: &std::path::Path) -> Local {
    let manifest = json!({
        "format": 1, "arch": "x86_64", "kernel_release": "", "agent_version": "",
        "kernel_source": { "version": "", "origin": "", "sha256": "", "pinned": true }, "files": {}
    });
    let path = dir.join("none");
    let guest = GuestFiles {
        dir: path.clone(),
        kernel: path.clone(),
        initramfs: path.clone(),
        template: path.clone(),
        manifest: serde_json::from_value(manifest).unwrap(),
    };
    let home = Home::open(Some(dir.join("home"))).unwrap();
    Local::open(home, guest, path).unwrap()
}

/// Options of a box with the name of this number.
pub(super) fn config(number: u32, name: u8) -> BoxConfig {
    BoxConfig {
        id: format!("{number:032x}"),
        name: format!("name-{name}"),
        created_ms: number.into(),
        options: BoxOptions::new("image"),
        image_digest: "sha256:0".into(),
        image: Default::default(),
    }
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("base"), [0; 1024]).unwrap();
        let local = open(dir.path());
        Self { dir, local, model: BTreeMap::new(), locks: HashMap::new(), made: 0 }
    }

    fn reopen(&mut self) {
        self.local = open(self.dir.path());
    }

    /// One of the existing boxes.
    fn pick(&self, which: u8) -> Option<String> {
        let ids: Vec<&String> = self.model.keys().collect();
        ids.get(usize::from(which) % ids.len().max(1)).map(|id| (*id).clone())
    }

    /// The box that [`pick`](Self::pick) chooses, if a process has its lock.
    fn pick_running(&self, which: u8) -> Option<String> {
        self.pick(which).filter(|id| self.locks.contains_key(id))
    }

    /// The box that [`pick`](Self::pick) chooses, if no process has its lock.
    fn pick_stopped(&self, which: u8) -> Option<String> {
        self.pick(which).filter(|id| !self.locks.contains_key(id))
    }

    /// Makes the box of `config`.
    fn settle(&self, config: &BoxConfig) -> Result<(), Error> {
        self.local.settle(config, &self.dir.path().join("base"), 1024)
    }

    fn set_state(&mut self, id: &str, state: BoxState) {
        self.model.get_mut(id).unwrap().1 = state;
    }

    fn config(&mut self, name: u8) -> BoxConfig {
        self.made += 1;
        config(self.made, name)
    }

    fn is_taken(&self, name: &str) -> bool {
        self.model.values().any(|(taken, _)| taken == name)
    }

    fn expect(&mut self, config: &BoxConfig) {
        self.model.insert(config.id.clone(), (config.name.clone(), BoxState::Configured));
    }

    fn write(&self, id: &str, status: &Status) {
        status.write(self.local.home.folder(id).path(), Durability::Process).unwrap();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Make(name) => self.make(name),
            Step::MakeAndCrashEarly(name) => self.make_and_crash_early(name),
            Step::MakeAndCrashLate(name) => self.make_and_crash_late(name),
            Step::MakeThrowAwayAndCrash(name, cut) => self.make_throw_away_and_crash(name, cut),
            Step::Rename(which, name) => self.rename(which, name),
            Step::RenameAndCrash(which, name) => self.rename_and_crash(which, name),
            Step::ReplaceAndCrash(which) => self.replace_and_crash(which),
            Step::Remove(which) => self.remove(which),
            Step::RemoveAndCrash(which) => self.remove_and_crash(which),
            Step::Start(which) => self.start(which),
            Step::End(which) => self.end(which),
            Step::Die(which) => self.die(which),
            Step::Reopen => self.reopen(),
        }
    }

    fn make(&mut self, name: u8) {
        let config = self.config(name);
        let made = self.settle(&config);
        assert_eq!(made.is_ok(), !self.is_taken(&config.name), "{made:?}");
        if made.is_ok() {
            self.expect(&config);
        }
    }

    fn make_and_crash_early(&mut self, name: u8) {
        let config = self.config(name);
        let guard = self.local.home.lock_boxes().unwrap();
        if !self.is_taken(&config.name) {
            self.local.store.add(&entry(&config)).unwrap();
            self.local.home.new_folder(&config.id).unwrap();
        }
        drop(guard);
        self.reopen();
    }

    fn make_and_crash_late(&mut self, name: u8) {
        let config = self.config(name);
        if self.settle(&config).is_ok() {
            self.expect(&config);
            self.local.store.remove(&config.id).unwrap();
        }
        self.reopen();
    }

    fn make_throw_away_and_crash(&mut self, name: u8, cut: bool) {
        let mut config = self.config(name);
        config.options = config.options.auto_remove(true);
        if self.settle(&config).is_ok() && cut {
            let folder = self.local.home.folder(&config.id);
            std::fs::write(folder.file(CONFIG), "").unwrap();
        }
        self.local.made().clear();
        self.reopen();
    }

    fn rename(&mut self, which: u8, name: u8) {
        let Some(id) = self.pick(which) else { return };
        let name = format!("name-{name}");
        let own = self.model[&id].0 == name;
        let renamed = self.local.rename(&id, &name);
        assert_eq!(renamed.is_ok(), own || !self.is_taken(&name));
        if renamed.is_ok() {
            self.model.get_mut(&id).unwrap().0 = name;
        }
    }

    fn rename_and_crash(&mut self, which: u8, name: u8) {
        let Some(id) = self.pick(which) else { return };
        // Unless the name is taken.
        let _ = self.local.store.rename(&id, &format!("name-{name}"));
        self.reopen();
    }

    fn replace_and_crash(&mut self, which: u8) {
        let Some(id) = self.pick(which) else { return };
        let folder = self.local.home.folder(&id);
        for name in [".config.json.new", ".status.json.new"] {
            std::fs::write(folder.file(name), "{\"half").unwrap();
        }
        self.reopen();
    }

    fn remove(&mut self, which: u8) {
        let Some(id) = self.pick_stopped(which) else { return };
        assert!(self.local.try_remove(&id).unwrap());
        self.model.remove(&id);
    }

    fn remove_and_crash(&mut self, which: u8) {
        let Some(id) = self.pick_stopped(which) else { return };
        let guard = self.local.home.lock_boxes().unwrap();
        self.local.home.retire(&id, Durability::Power).unwrap();
        drop(guard);
        self.model.remove(&id);
        self.reopen();
    }

    fn start(&mut self, which: u8) {
        let Some(id) = self.pick(which) else { return };
        let lock = self.local.home.folder(&id).lock().unwrap();
        assert_eq!(lock.is_some(), !self.locks.contains_key(&id));
        let Some(lock) = lock else { return };
        self.locks.insert(id.clone(), lock);
        self.write(&id, &Status { phase: Phase::Running, ..Status::starting() });
        self.set_state(&id, BoxState::Running);
    }

    fn end(&mut self, which: u8) {
        let Some(id) = self.pick_running(which) else { return };
        let ended = Some(BoxEnd { cause: EndCause::Stopped, at_ms: 9, main: None });
        self.write(&id, &Status { phase: Phase::Ended, ended, ..Status::starting() });
        self.locks.remove(&id);
        self.set_state(&id, BoxState::Stopped);
    }

    fn die(&mut self, which: u8) {
        let Some(id) = self.pick_running(which) else { return };
        self.locks.remove(&id);
        self.set_state(&id, BoxState::Failed(FailureReason::ProcessDied));
    }

    fn check(&self) {
        let listed = self.local.list().unwrap().into_iter();
        let listed: BTreeMap<_, _> =
            listed.map(|info| (info.id, (info.name, info.state))).collect();
        assert_eq!(listed, self.model);
        for (id, (name, _)) in &self.model {
            assert_eq!(&self.local.store.find(name).unwrap().id, id);
        }
    }
}

#[test]
fn a_box_that_removes_itself_stays_until_it_has_run_unless_its_creator_exits() {
    let mut world = World::new();
    let base = world.dir.path().join("base");
    let mut make = |detach: bool| {
        let mut config = world.config(u8::from(detach));
        config.options = config.options.auto_remove(true).detach(detach);
        world.local.settle(&config, &base, 1024).unwrap();
        config.id
    };
    let (created, makers) = (make(true), make(false));
    let ids = |world: &World| -> Vec<_> {
        world.local.list().unwrap().into_iter().map(|info| info.id).collect()
    };
    world.local.reconcile().unwrap();
    assert_eq!(ids(&world), [&*created, &*makers], "the maker lives");
    world.local.made().clear();
    world.reopen();
    assert_eq!(ids(&world), [&*created]);
    // A box that has run: it is live, or removes itself.
    let lock = world.local.home.folder(&created).lock().unwrap().unwrap();
    world.write(&created, &Status::starting());
    world.reopen();
    assert_eq!(ids(&world), [&*created]);
    drop(lock);
    world.reopen();
    assert!(ids(&world).is_empty(), "it was killed before it could");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_home_is_as_its_model(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check();
        }
        // There are no leftovers without a box.
        world.reopen();
        world.check();
        let boxes = std::fs::read_dir(world.dir.path().join("home/boxes")).unwrap();
        let names = boxes.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<_> = names.filter(|name| name.starts_with(".new") || name.starts_with(".gone")).collect();
        prop_assert!(left.is_empty(), "{left:?}");
    }
}
