//! A real browser, driven as <https://www.w3.org/TR/webdriver2/> says. What Chromium adds to that is used for what the standard
//! cannot say: a dark or a narrow screen, pages without scripts, requests that were made.

use std::{
    fs,
    io::BufReader,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::process::remove_dir;

/// A browser with one window. It ends when it is dropped, and everything of it with it.
pub struct Browser {
    driver: Child,
    /// The driver ends when nobody takes what it says.
    _output: BufReader<ChildStdout>,
    agent: ureq::Agent,
    session: String,
    profile: PathBuf,
}

impl Browser {
    /// Starts one whose profile is in this folder. Blocks.
    pub fn start(dir: &Path) -> Result<Self> {
        let profile = dir.join("browser");
        remove_dir(&profile)?;
        fs::create_dir_all(&profile)?;
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start chromedriver")?;
        let mut output = BufReader::new(driver.stdout.take().context("no output")?);
        let port = port(&mut output)?;
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build();
        let mut browser = Self {
            driver,
            _output: output,
            agent: ureq::Agent::new_with_config(agent),
            session: format!("http://127.0.0.1:{port}/session"),
            profile,
        };
        let session = browser.post("", &browser.wishes())?;
        let id = session["sessionId"].as_str().context("no session")?;
        browser.session = format!("{}/{id}", browser.session);
        Ok(browser)
    }

    /// As root a browser has no sandbox of its own, and a container's shared memory is too small for it.
    fn wishes(&self) -> Value {
        let arguments = json!([
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
            "--lang=en",
            format!("--user-data-dir={}", self.profile.display()),
        ]);
        json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}})
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let url = format!("{}{path}", self.session);
        let mut answer = self.agent.post(&url).send_json(body)?;
        let status = answer.status();
        let said: Value = answer
            .body_mut()
            .with_config()
            .limit(64 << 20)
            .read_json()
            .with_context(|| format!("the answer to {path}"))?;
        if !status.is_success() {
            bail!("the browser refuses {path}: {}", said["value"]["message"]);
        }
        Ok(said["value"].clone())
    }

    /// Opens an address, and waits until it is loaded.
    pub fn open(&self, url: &str) -> Result<()> {
        self.post("/url", &json!({"url": url}))?;
        Ok(())
    }

    /// What an expression of the page's language is.
    pub fn look(&self, expression: &str) -> Result<Value> {
        let script = format!("return ({expression});");
        self.post("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Presses keys one after the other, each by its character or the standard's code point for it.
    pub fn press(&self, keys: &str) -> Result<()> {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key})))
            .collect();
        let source = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.post("/actions", &json!({"actions": [source]}))?;
        Ok(())
    }

    /// A command of Chromium's own protocol. <https://chromedevtools.github.io/devtools-protocol/>
    pub fn command(&self, command: &str, parameters: &Value) -> Result<Value> {
        let body = json!({"cmd": command, "params": parameters});
        self.post("/goog/cdp/execute", &body)
    }

    /// Makes the window so wide and high, in pixels of the page.
    pub fn size(&self, width: u32, height: u32) -> Result<()> {
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.command("Emulation.setDeviceMetricsOverride", &metrics)?;
        Ok(())
    }

    /// Whether the person wishes it dark.
    pub fn dark(&self, dark: bool) -> Result<()> {
        let value = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.command("Emulation.setEmulatedMedia", &features)?;
        Ok(())
    }

    /// Whether pages may run scripts.
    pub fn scripts(&self, run: bool) -> Result<()> {
        let value = json!({"value": !run});
        self.command("Emulation.setScriptExecutionDisabled", &value)?;
        Ok(())
    }

    /// What is seen, as PNG.
    pub fn picture(&self) -> Result<Vec<u8>> {
        let shot = self.command("Page.captureScreenshot", &json!({"format": "png"}))?;
        let data = shot["data"].as_str().context("no picture")?;
        Ok(BASE64_STANDARD.decode(data)?)
    }

    /// What the console was told since it was last asked for.
    pub fn console(&self) -> Result<Vec<String>> {
        let entries = self.post("/se/log", &json!({"type": "browser"}))?;
        let entries = entries.as_array().context("no log")?;
        let lines = entries.iter().map(|entry| entry["message"].to_string());
        Ok(lines.collect())
    }

    /// The addresses that pages asked for since that was last asked for.
    pub fn requests(&self) -> Result<Vec<String>> {
        let entries = self.post("/se/log", &json!({"type": "performance"}))?;
        let mut urls = vec![];
        for entry in entries.as_array().context("no log")? {
            let text = entry["message"].as_str().unwrap_or_default();
            let event: Value = serde_json::from_str(text)?;
            let message = &event["message"];
            // The browser's own first tab asks for much.
            let of_page = message["params"]["documentURL"].as_str();
            let of_page = of_page.is_some_and(|url| url.starts_with("http"));
            if of_page && message["method"] == "Network.requestWillBeSent" {
                let url = message["params"]["request"]["url"].as_str();
                urls.extend(url.map(str::to_owned));
            }
        }
        Ok(urls)
    }
}

/// The port that the driver has chosen.
fn port(output: &mut impl std::io::BufRead) -> Result<u16> {
    let mut line = String::new();
    // "ChromeDriver was started successfully on port 34567."
    while output.read_line(&mut line)? > 0 {
        if let Some((_, port)) = line.split_once("successfully on port ") {
            return Ok(port.trim().trim_end_matches('.').parse()?);
        }
        line.clear();
    }
    bail!("chromedriver did not start")
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends with its session; its driver may have ended by itself.
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let _ = remove_dir(&self.profile);
    }
}
