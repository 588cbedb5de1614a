//! Realistic environments and profiles: a setting that cannot work is reported at once, a blank one
//! counts as unset, and none makes a program panic.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use aws_config::{Region, SdkConfig};
use e2e::process::Process;
use e2e::workshop::Workshop;
use kcl_lite::{ErrorKind, StreamSource, Worker};
use tempfile::TempDir;
use tokio::process::Command;

use super::INT;

const COMMANDS: [&str; 3] =
    ["./producer -interval 1ms", "./consumer", "./consumer --app wildrydes-tail"];

/// A home directory with profile files.
struct Home(TempDir);

impl Home {
    fn with_config(config: &[u8]) -> Result<Self> {
        let home = Self(tempfile::tempdir()?);
        std::fs::create_dir_all(home.path(".aws/sso/cache"))?;
        std::fs::write(home.path(".aws/config"), config)?;
        Ok(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes `command` use the files, without keys in the environment.
    fn use_in(&self, command: &mut Command) {
        for name in [
            "AWS_CONFIG_FILE",
            "AWS_SHARED_CREDENTIALS_FILE",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        ] {
            command.env_remove(name);
        }
        command.env("HOME", self.0.path());
    }
}

/// Returns the shell that runs `line` with these variables in addition to the workshop's.
fn shell(workshop: &Workshop, line: &str, variables: &[(&str, &str)]) -> Command {
    let mut shell = workshop.shell("learner", &format!("exec {line}"));
    shell.envs(variables.iter().copied());
    shell
}

/// Waits until the command has failed, and returns its last line without the command's name.
async fn last_words(line: &str, shell: Command) -> Result<String> {
    let mut process = Process::start(line, shell)?;
    let code = process.ended().await?.code();
    let transcript = process.transcript();
    assert_eq!(code, Some(1), "{line}: {}", transcript.stderr);
    let last = transcript.stderr.lines().last().unwrap();
    assert!(!transcript.stderr.contains("retrying"), "{}", transcript.stderr);
    Ok(last.split_once(": ").unwrap().1.to_owned())
}

/// Runs all commands, checks that they fail with the same message, and returns it.
async fn told_alike(workshop: &Workshop, prepare: impl Fn(&mut Command)) -> Result<String> {
    let mut reported = Vec::new();
    for command in COMMANDS {
        let mut shell = shell(workshop, command, &[]);
        prepare(&mut shell);
        reported.push(last_words(command, shell).await?);
    }
    assert!(reported.iter().all(|words| *words == reported[0]), "{reported:#?}");
    Ok(reported.swap_remove(0))
}

#[tokio::test]
async fn what_is_wrong_with_a_profile_is_reported_at_once_by_both_commands_alike() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    const LOOP: &[u8] = b"[profile a]\nrole_arn = arn:aws:iam::123456789012:role/r\n\
        source_profile = b\n[profile b]\nrole_arn = arn:aws:iam::123456789012:role/r\n\
        source_profile = a\n";
    for (config, profile, parts) in [
        (
            &b"[profile dev]\nregion = us-east-1\n"[..],
            "missing",
            &["`missing`", "existing profiles: `dev`"][..],
        ),
        (b"[dev]\nregion = us-east-1\n", "dev", &["`dev`", "`[profile dev]`"]),
        (b"\xef\xbb\xbf[default]\nregion = us-east-1\n", "default", &["byte order mark"]),
        (b"\xff\xfe[\0d\0e\0f\0", "default", &["not UTF-8", ".aws/config"]),
        (b"[default]\nregion us-east-1\n", "default", &["line 2", "'='"]),
        (LOOP, "a", &["`a` → `b` → `a`"]),
        (
            b"[profile a]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = z\n",
            "a",
            &["no profile `z`"],
        ),
    ] {
        let home = Home::with_config(config)?;
        let words = told_alike(&workshop, |command| {
            home.use_in(command);
            command.env("AWS_PROFILE", profile);
        })
        .await?;
        for part in parts {
            assert!(words.contains(part), "{part}: {words}");
        }
    }
    assert!(workshop.aws.local.requests().operations("learner").is_empty());
    Ok(())
}

/// The file name of the cached login of the session `dev`: the SHA-1 of its name.
const LOGIN_OF_DEV: &str = ".aws/sso/cache/34c6fceca75e456f25e7e99531e2425c6c1de443.json";

#[tokio::test]
async fn credentials_that_a_profile_cannot_get_have_the_right_remedy() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    const SSO: &[u8] = b"[profile dev]\nsso_session = dev\nsso_account_id = 123456789012\n\
        sso_role_name = r\n[sso-session dev]\nsso_region = us-east-1\n\
        sso_start_url = https://dev.example/start\n";
    let expired = br#"{"accessToken":"t","expiresAt":"2020-01-01T00:00:00Z","region":"us-east-1",
        "startUrl":"https://dev.example/start"}"#;
    for (config, login, remedy) in [
        (SSO, None, "run `aws sso login --profile dev`"),
        (SSO, Some(&expired[..]), "run `aws sso login --profile dev`"),
        (b"[profile dev]\ncredential_process = no-such-helper\n", None, "no-such-helper"),
        (b"[profile dev]\ncredential_process = echo {}\n", None, "by hand"),
        (b"[profile dev]\nregion = us-east-1\n", None, "aws configure"),
    ] {
        let home = Home::with_config(config)?;
        if let Some(login) = login {
            std::fs::write(home.path(LOGIN_OF_DEV), login)?;
        }
        let mut reported = Vec::new();
        for command in COMMANDS {
            let mut shell = shell(&workshop, command, &[("AWS_PROFILE", "dev")]);
            home.use_in(&mut shell);
            reported.push(last_words(command, shell).await?);
        }
        for words in &reported {
            assert_eq!(words, &reported[0]);
            for part in [remedy, "no AWS credentials for stream `wildrydes`", "hint: "] {
                assert!(words.contains(part), "{part}: {words}");
            }
        }
    }
    assert!(workshop.aws.local.requests().operations("learner").is_empty());
    Ok(())
}

#[tokio::test]
async fn a_region_or_endpoint_that_can_never_work_is_reported_like_a_wrong_flag() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    for (name, value, part) in [
        (
            "AWS_REGION",
            "us_east_1",
            "AWS_REGION `us_east_1` is not a region; one looks like us-west-2",
        ),
        ("AWS_REGION", "us-east-1 ", "AWS_REGION `us-east-1 ` is not"),
        ("AWS_REGION", "us-east-1\n", "AWS_REGION `us-east-1\\n` is not"),
        ("AWS_DEFAULT_REGION", "\"us-east-1\"", "AWS_DEFAULT_REGION `\\\"us-east-1\\\"` is not"),
        (
            "AWS_ENDPOINT_URL",
            "localhost:4566",
            "AWS_ENDPOINT_URL `localhost:4566` must begin with http",
        ),
        (
            "AWS_ENDPOINT_URL_KINESIS",
            "me:secret@host",
            "AWS_ENDPOINT_URL_KINESIS `host` must begin",
        ),
        ("AWS_ENDPOINT_URL_DYNAMODB", "http://", "AWS_ENDPOINT_URL_DYNAMODB `http://` must"),
        ("AWS_USE_FIPS_ENDPOINT", "true", "AWS_USE_FIPS_ENDPOINT and the endpoint URL http://127"),
    ] {
        let words = told_alike(&workshop, |command| {
            command.env(name, value);
        })
        .await?;
        assert!(words.contains(part), "{part}: {words}");
        for internal in ["secret", "interceptor", "; other"] {
            assert!(!words.contains(internal), "{words}");
        }
    }
    let home = Home::with_config(b"[default]\nregion = us_east_1\n")?;
    let words = told_alike(&workshop, |command| home.use_in(command)).await?;
    assert!(words.contains("`region` of the AWS profile `default` `us_east_1` is not"), "{words}");
    Ok(())
}

#[tokio::test]
async fn what_is_blank_is_not_set() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let blank = [
        "AWS_PROFILE",
        "AWS_REGION",
        "AWS_ENDPOINT_URL_KINESIS",
        "AWS_ENDPOINT_URL_DYNAMODB",
        "AWS_MAX_ATTEMPTS",
        "AWS_RETRY_MODE",
        "AWS_CA_BUNDLE",
        "HTTP_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "AWS_SESSION_TOKEN",
    ]
    .map(|name| (name, " "));
    let line = "./producer -interval 1ms -count 1";
    let mut shell = shell(&workshop, line, &blank);
    shell.env("AWS_DEFAULT_REGION", "us-west-2").env("AWS_PROFILE", "");
    shell.env("AWS_SESSION_TOKEN", "");
    let mut process = Process::start(line, shell)?;
    let code = process.ended().await?.code();
    let stderr = process.transcript().stderr.clone();
    assert!(stderr.contains("us-west-2 (from the environment"), "{stderr}");
    assert_eq!(code, Some(0), "{stderr}");
    Ok(())
}

/// Returns the first line of the command.
async fn opening(line: &str, shell: Command) -> Result<String> {
    let process = Process::start(line, shell)?;
    process
        .wait_for("a line", |transcript| {
            let (line, _) = transcript.stderr.split_once('\n')?;
            Some(line.to_owned())
        })
        .await
}

#[tokio::test]
async fn the_first_line_names_the_endpoint_of_each_service() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let url = workshop.aws.endpoint_url();
    let with_password = url.replace("http://", "http://me:secret@");
    let other = "http://127.0.0.1:9";
    let services = format!(
        "[default]\nservices = local\n[services local]\nkinesis =\n  endpoint_url = {url}\n\
         dynamodb =\n  endpoint_url = {other}\n"
    );
    let home = Home::with_config(services.as_bytes())?;
    let from_profile = |command: &mut Command| {
        command.env_remove("AWS_ENDPOINT_URL").env("HOME", home.path(""));
        command.env_remove("AWS_CONFIG_FILE");
    };
    for (line, variables, has_profile, part) in [
        ("./consumer", &[][..], false, format!(", at {url})")),
        ("./consumer", &[("AWS_ENDPOINT_URL_KINESIS", other)], false, format!(", at {other})")),
        (
            "./consumer --app tail",
            &[("AWS_ENDPOINT_URL_DYNAMODB", other)],
            false,
            format!(", Kinesis at {url}, DynamoDB at {other})"),
        ),
        (
            "./producer",
            &[("AWS_ENDPOINT_URL_KINESIS", &*with_password)],
            false,
            format!(", at {url})"),
        ),
        ("./producer", &[], true, format!(", at {url})")),
        ("./consumer --app tail", &[], true, format!(", Kinesis at {url}, DynamoDB at {other})")),
        (
            "./consumer --app tail",
            &[("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true"), ("HTTPS_PROXY", other)],
            true,
            "(the default) as".to_owned(),
        ),
    ] {
        let mut shell = shell(&workshop, line, variables);
        if has_profile {
            from_profile(&mut shell);
        }
        let opening = opening(line, shell).await?;
        assert!(opening.contains(&part), "{part}: {opening}");
        assert!(!opening.contains("secret"), "{opening}");
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_is_found_by_its_arn() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let arn = "arn:aws:kinesis:us-east-1:000000000000:stream/wildrydes";
    // The ARN overrides the environment.
    let elsewhere = [("AWS_REGION", "eu-west-1")];
    let produce = format!("./producer -interval 1ms -count 3 -stream {arn}");
    for packed in ["", " --aggregate"] {
        let line = format!("{produce}{packed}");
        let mut producer = Process::start(&line, shell(&workshop, &line, &elsewhere))?;
        assert!(producer.ended().await?.success(), "{}", producer.transcript().stderr);
    }
    for sharing in ["", " --app wildrydes-tail"] {
        let line = format!("./consumer -stream {arn} --from trim-horizon{sharing}");
        let mut consumer = Process::start(&line, shell(&workshop, &line, &elsewhere))?;
        consumer.wait_for_stderr("us-east-1 (from the ARN").await?;
        consumer.wait_for_records(6).await?;
        assert_eq!(consumer.stop(INT).await?, 0);
    }
    Ok(())
}

/// A stream of the same name exists in this account: it must not be used in place of the ARN's.
#[tokio::test]
async fn a_stream_of_another_account_is_asked_for_by_its_arn_and_not_by_its_name() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let arn = "arn:aws:kinesis:us-east-1:123456789012:stream/wildrydes";
    for (command, action) in [
        ("producer -interval 1ms", "PutRecord"),
        ("producer -interval 1ms -unicorns 4", "PutRecords"),
        ("producer -interval 1ms --aggregate", "ListShards"),
        ("consumer", "ListShards"),
        ("consumer --app wildrydes-tail", "ListShards"),
        ("consumer --app wildrydes-tail --fan-out", "ListShards"),
    ] {
        let line = format!("./{command} -stream {arn}");
        let mut process = workshop.run("learner", &line)?;
        assert_eq!(process.ended().await?.code(), Some(1), "{line}");
        let stderr = process.transcript().stderr.clone();
        let last = stderr.lines().last().unwrap_or_default();
        for part in [action, "AccessDeniedException: ", arn, "in its resource policy"] {
            assert!(last.contains(part), "{part}: {line}: {stderr}");
        }
    }
    assert!(workshop.aws.sent("wildrydes").await?.is_empty());
    Ok(())
}

/// Variables that the AWS configuration and the HTTP client read.
const NAMES: [&str; 41] = [
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_RETRY_MODE",
    "AWS_MAX_ATTEMPTS",
    "AWS_NEW_RETRIES_2026",
    "AWS_DEFAULTS_MODE",
    "AWS_ENDPOINT_URL_KINESIS",
    "AWS_ENDPOINT_URL_DYNAMODB",
    "AWS_ENDPOINT_URL_STS",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_SDK_UA_APP_ID",
    "AWS_ACCOUNT_ID",
    "AWS_ACCOUNT_ID_ENDPOINT_MODE",
    "AWS_DISABLE_REQUEST_COMPRESSION",
    "AWS_DISABLE_CLOCK_SKEW_CORRECTION",
    "AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "AWS_AUTH_SCHEME_PREFERENCE",
    "AWS_SIGV4A_SIGNING_REGION_SET",
    "AWS_CA_BUNDLE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "RUST_LOG",
];

/// Keys of a profile.
const KEYS: [&str; 22] = [
    "region",
    "retry_mode",
    "max_attempts",
    "endpoint_url",
    "services",
    "ignore_configured_endpoint_urls",
    "use_fips_endpoint",
    "use_dualstack_endpoint",
    "sdk_ua_app_id",
    "account_id_endpoint_mode",
    "disable_request_compression",
    "request_min_compression_size_bytes",
    "request_checksum_calculation",
    "response_checksum_validation",
    "auth_scheme_preference",
    "sigv4a_signing_region_set",
    "aws_access_key_id",
    "aws_session_token",
    "role_arn",
    "source_profile",
    "credential_source",
    "sso_session",
];

const VALUES: [&[u8]; 22] = [
    b"",
    b" ",
    b"0",
    b"-1",
    b"99999999999999999999",
    b"true",
    b"legacy",
    b"adaptive",
    b"standard",
    b"default",
    b"required",
    b"us-east-1\n",
    b"\"us-east-1\"",
    b"\xff\xfe",
    b"\xc3\xa9",
    b"a\tb",
    b"://",
    b"http://[",
    b"http://me:secret@127.0.0.1:9/x?y",
    b"socks5://127.0.0.1:9",
    b"/dev/null",
    b"*",
];

/// Writes a random environment: a few variables, and a profile file with a few keys.
fn environment(seed: u64, home: &Path) -> Result<Vec<(&'static str, OsString)>> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let value = |rng: &mut fastrand::Rng| VALUES[rng.usize(..VALUES.len())];
    let mut profile = b"[default]\n".to_vec();
    for _ in 0..rng.usize(..4) {
        profile.extend(KEYS[rng.usize(..KEYS.len())].bytes().chain(*b" = "));
        profile.extend(value(&mut rng).iter().chain(b"\n"));
    }
    let config = home.join("config");
    std::fs::write(&config, profile)?;
    let mut variables = vec![("AWS_CONFIG_FILE", config.into_os_string())];
    for _ in 0..1 + rng.usize(..4) {
        let value = OsString::from_vec(value(&mut rng).to_vec());
        variables.push((NAMES[rng.usize(..NAMES.len())], value));
    }
    Ok(variables)
}

#[tokio::test]
async fn no_environment_and_no_profile_makes_a_command_panic() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    workshop.aws.put("wildrydes", "Shadowfax", b"{}").await?;
    let url = workshop.aws.endpoint_url();
    let home = tempfile::tempdir()?;
    // First regressions of earlier findings, then random environments.
    let known = |name: &'static str, value: &str| vec![(name, OsString::from(value))];
    let mut environments: Vec<_> = ["", "0", "-1", "many"]
        .into_iter()
        .flat_map(|value| ["AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"].map(|name| known(name, value)))
        .collect();
    let legacy = home.path().join("legacy");
    std::fs::write(&legacy, "[default]\nretry_mode = legacy\nmax_attempts = 0\n")?;
    environments.push(vec![("AWS_CONFIG_FILE", legacy.into_os_string())]);
    let known = environments.len();
    for seed in 0..24 {
        environments.push(environment(seed, home.path())?);
        let command = if seed % 2 == 0 {
            "./producer -interval 1ms -count 1"
        } else {
            "./consumer --from trim-horizon"
        };
        let upto = if seed == 0 { known + 1 } else { 1 };
        for variables in environments.drain(environments.len() - upto..) {
            let line = format!("{command} -endpoint-url {url}");
            let mut shell = shell(&workshop, &line, &[]);
            shell.envs(variables.iter().map(|(name, value)| (name, value)));
            let mut process = Process::start(&format!("{line} with {variables:?}"), shell)?;
            process
                .wait_for("a record, a complaint or the end", |transcript| {
                    let is_over =
                        !transcript.documents.is_empty() || transcript.stderr.contains("retrying");
                    (is_over || transcript.is_complete()).then_some(())
                })
                .await?;
            // The process may have ended.
            process.signal(INT).ok();
            let code = process.ended().await?.code();
            let stderr = &process.transcript().stderr;
            assert!(!stderr.contains("panicked"), "{variables:?}: {stderr}");
            assert_ne!(code, Some(101), "{variables:?}: {stderr}");
        }
    }
    Ok(())
}

/// Runs [`a_worker_is_built`] in a separate process, and returns its output.
fn built_with(variables: &[(&str, OsString)]) -> Result<String> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args(["--exact", "environment::a_worker_is_built", "--ignored", "--nocapture"]);
    command.env_clear().env("AWS_EC2_METADATA_DISABLED", "true");
    command.env("AWS_CONFIG_FILE", "/dev/null").env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("panicked"), "{variables:?}: {text}");
    let reported = text.lines().find_map(|line| Some(line.split_once("BUILT: ")?.1.to_owned()));
    Ok(reported.unwrap_or_else(|| panic!("{text}")))
}

#[tokio::test]
#[ignore = "run by other tests in a process with another environment"]
async fn a_worker_is_built() {
    match Worker::builder("billing-app", "orders").build().await {
        Ok(_) => println!("BUILT: yes"),
        Err(error) => println!("BUILT: {:?} {error}", error.kind()),
    }
}

#[test]
fn the_library_fails_at_once_where_nothing_can_work() -> Result<()> {
    let region = ("AWS_REGION", OsString::from("us-east-1"));
    assert_eq!(built_with(std::slice::from_ref(&region))?, "yes");
    for (variables, parts) in [
        (vec![], ["Config no AWS region is set", "set AWS_REGION"]),
        (vec![("AWS_REGION", "us_east_1".into())], ["Config AWS_REGION `us_east_1`", "us-west-2"]),
        (
            vec![region.clone(), ("AWS_PROFILE", "dev".into())],
            ["Config the AWS profile `dev`", "aws"],
        ),
        (
            vec![region.clone(), ("AWS_ENDPOINT_URL_KINESIS", "localhost".into())],
            ["Config AWS_ENDPOINT_URL_KINESIS `localhost`", "http://"],
        ),
        (
            vec![region.clone(), ("AWS_CA_BUNDLE", "/dev/null".into())],
            ["Config https://kinesis.us-east-1.amazonaws.com cannot be called", "PEM"],
        ),
        (
            vec![region, ("HTTPS_PROXY", "socks5://me:secret@proxy".into())],
            ["cannot be called: HTTPS_PROXY `socks5://proxy`", "HTTP proxy"],
        ),
    ] {
        let reported = built_with(&variables)?;
        for part in parts {
            assert!(reported.contains(part), "{part}: {reported}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_configuration_that_a_user_has_made_is_checked_too() {
    let region = |name: &'static str| SdkConfig::builder().region(Region::from_static(name));
    let good = region("us-east-1").build();
    for (bad, part) in [
        (SdkConfig::builder().build(), "no AWS region is set"),
        (region("us_east_1").build(), "the region of `aws_config` `us_east_1`"),
        (region("us-east-1").endpoint_url("localhost").build(), "the endpoint of `aws_config`"),
    ] {
        let of_stream = StreamSource::new("orders").aws_config(bad.clone());
        for builder in [
            Worker::builder("billing-app", "orders").aws_config(bad.clone()),
            Worker::builder("billing-app", "orders").aws_config(good.clone()).lease_aws_config(bad),
            Worker::builder("billing-app", of_stream).aws_config(good.clone()),
        ] {
            let error = builder.build().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    }
}

#[test]
fn no_environment_and_no_profile_makes_the_library_panic() -> Result<()> {
    let home = tempfile::tempdir()?;
    for (name, value) in [("AWS_RETRY_MODE", "legacy"), ("AWS_MAX_ATTEMPTS", "0")] {
        let region = ("AWS_REGION", OsString::from("us-east-1"));
        assert_eq!(built_with(&[region, (name, value.into())])?, "yes");
    }
    for seed in 100..116 {
        built_with(&environment(seed, home.path())?)?;
    }
    Ok(())
}
