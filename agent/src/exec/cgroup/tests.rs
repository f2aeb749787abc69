use super::*;

#[test]
fn only_the_oom_kill_counter_counts() {
    assert_eq!(oom_kills(b"low 0\nhigh 1\nmax 7\noom 3\noom_kill 2\noom_group_kill 9\n"), 2);
    assert_eq!(oom_kills(b"oom 3\noom_kill 0\n"), 0);
    assert_eq!(oom_kills(b""), 0);
    assert_eq!(oom_kills(b"oom_kill x"), 0);
}
