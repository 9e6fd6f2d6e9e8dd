//! The README's tour, typed as it stands.

use std::process::Command;

use crate::app::TestApp;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tour_works_as_it_stands() {
    let app = TestApp::start(1).await;
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let tour = readme.split("## Five-minute tour").nth(1).unwrap().split("\n## ").next().unwrap();
    let commands: Vec<&str> = tour.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap()).collect();
    let (last, curl) = commands.split_last().unwrap();
    let run = |script: &str| {
        let script = script.replace("http://127.0.0.1:7070", &app.url);
        let script = script.replace("./streamkeep-data", app.redis.data.path().to_str().unwrap());
        let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let answers = run(&curl.concat());
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    let expected = ["201", "201", "409", "200", "200", "200", "200", "304", "201", "200", "200", "200", "400"];
    assert_eq!(statuses, expected, "{answers}");
    assert!(answers.contains(r#""current_version":3,"events":[{"stream":"order-12345","version":3"#), "{answers}");
    assert!(last.starts_with("redis-cli "), "{last}");
    // Where Redis came as a wheel, there is no redis-cli; the test of the layout needs none.
    if Command::new("redis-cli").arg("--version").output().is_ok() {
        assert!(run(last).contains("order-placed"));
    }
}
