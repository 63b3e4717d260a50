//! Actions: those that stand in for real ones come with the agent, written where the real agent downloads them.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::work::Place;

/// An action that runs on the agent's node.
#[derive(Debug, PartialEq)]
struct BuiltIn {
    name: &'static str,
    using: &'static str,
    pre: Option<&'static str>,
    main: &'static str,
    post: Option<&'static str>,
    /// Its inputs with their defaults.
    inputs: &'static [(&'static str, &'static str)],
    files: &'static [(&'static str, &'static str)],
}

macro_rules! file {
    ($action:literal, $file:literal) => {
        (
            $file,
            include_str!(concat!("../actions/", $action, "/", $file)),
        )
    };
}

static BUILT_IN: [BuiltIn; 2] = [
    BuiltIn {
        name: "actions/checkout",
        using: "node20",
        pre: None,
        main: "dist/index.js",
        post: Some("dist/post.js"),
        inputs: &[
            ("repository", ""),
            ("ref", ""),
            ("token", ""),
            ("path", ""),
            ("fetch-depth", "1"),
            ("submodules", "false"),
        ],
        files: &[
            file!("checkout", "dist/index.js"),
            file!("checkout", "dist/post.js"),
        ],
    },
    BuiltIn {
        name: "simulated/stages",
        using: "node24",
        pre: Some("dist/pre.js"),
        main: "dist/main.js",
        post: Some("dist/post.js"),
        inputs: &[("exit-pre", "0"), ("exit-main", "0"), ("exit-post", "0")],
        files: &[
            file!("stages", "dist/pre.js"),
            file!("stages", "dist/main.js"),
            file!("stages", "dist/post.js"),
        ],
    },
];

/// A stage of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Pre,
    Main,
    Post,
}

/// What a step uses.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    /// A program for node.
    Script(Script),
    /// An image.
    Image(String),
}

/// An action for node.
#[derive(Debug, PartialEq)]
pub(crate) struct Script {
    built_in: &'static BuiltIn,
    /// Which version of it.
    pub(crate) reference: String,
    folder: PathBuf,
}

impl Action {
    /// Finds what `uses` names, and puts it where it belongs.
    pub(crate) fn prepare(uses: &str, place: &Place) -> Result<Self> {
        if let Some(image) = uses.strip_prefix("docker://") {
            return Ok(Self::Image(image.to_owned()));
        }
        let (name, reference) = uses.split_once('@').unwrap_or((uses, ""));
        let Some(built_in) = BUILT_IN.iter().find(|action| action.name == name) else {
            bail!("Unable to resolve action `{uses}`, repository not found");
        };
        let folder = place.actions.join(name).join(reference);
        for (file, text) in built_in.files {
            let path = folder.join(file);
            let parent = path.parent().unwrap_or(&folder);
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&path, text))
                .with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(Self::Script(Script {
            built_in,
            reference: reference.to_owned(),
            folder,
        }))
    }

    /// Whether it has this stage.
    pub(crate) fn has(&self, stage: Stage) -> bool {
        match self {
            Self::Script(script) => script.file(stage).is_some(),
            Self::Image(_) => stage == Stage::Main,
        }
    }
}

impl Script {
    /// `owner/name`.
    pub(crate) fn name(&self) -> &'static str {
        self.built_in.name
    }

    /// The version of node that it wants.
    pub(crate) fn using(&self) -> &'static str {
        self.built_in.using
    }

    /// Its inputs with their defaults.
    pub(crate) fn inputs(&self) -> &'static [(&'static str, &'static str)] {
        self.built_in.inputs
    }

    /// What a stage of it runs.
    pub(crate) fn file(&self, stage: Stage) -> Option<PathBuf> {
        let file = match stage {
            Stage::Pre => self.built_in.pre,
            Stage::Main => Some(self.built_in.main),
            Stage::Post => self.built_in.post,
        };
        file.map(|file| self.folder.join(file))
    }
}
