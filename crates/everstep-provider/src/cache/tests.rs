//! Restart, expiry, damage.

use super::*;

#[test]
fn values_survive_expire_and_do_not_hurt_when_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let key = cache_key(&["prompt", "text"]);
    assert_ne!(key, cache_key(&["promptt", "ext"]), "parts are told apart");
    let cache = FileCache::open(folder.path()).unwrap();
    assert_eq!(cache.get::<String>(&key).unwrap(), None);
    cache.put_at(&key, &"value", Duration::from_secs(1), 1_000).unwrap();
    let again = FileCache::open(folder.path()).unwrap();
    assert_eq!(again.get_at::<String>(&key, 1_999).unwrap().as_deref(), Some("value"));
    assert_eq!(again.get_at::<String>(&key, 2_000).unwrap(), None);
    cache.put_at(&key, &"value", Duration::from_secs(1), 1_000).unwrap();
    fs::write(folder.path().join(&key), b"{half").unwrap();
    assert_eq!(again.get_at::<String>(&key, 1_001).unwrap(), None);
    again.put("../../escape", &1, Duration::from_secs(60)).unwrap();
    assert_eq!(again.get::<u32>("../../escape").unwrap(), Some(1));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
