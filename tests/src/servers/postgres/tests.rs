//! Tests of what `start` decides before it starts a server.

use std::path::Path;

use super::{User, copy_install, find_user, unprivileged_user};

const ACCOUNTS: &str = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65533:nobody:/:/bin/false\n\
                        postgres:x:101:104::/var/lib/postgresql:/bin/bash\n";

#[test]
fn a_user_is_found_by_its_whole_name_and_never_is_root() {
    assert_eq!(find_user(ACCOUNTS, "postgres"), Some(User { uid: 101, gid: 104 }));
    assert_eq!(find_user(ACCOUNTS, "nobody"), Some(User { uid: 65534, gid: 65533 }));
    assert_eq!(find_user(ACCOUNTS, "post"), None);
    assert_eq!(find_user(ACCOUNTS, "root"), None);
    assert_eq!(find_user("postgres:x:broken", "postgres"), None);
}

#[test]
fn root_without_an_unprivileged_user_is_told_so() -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir()?;
    let passwd = folder.path().join("passwd");
    std::fs::write(&passwd, "root:x:0:0:root:/root:/bin/bash\n")?;
    let found = unprivileged_user(folder.path(), &passwd);
    if folder.path().metadata()?.uid() == 0 {
        let error = found.expect_err("root must not run Postgres").to_string();
        assert!(error.contains("does not run as root"), "{error}");
    } else {
        assert_eq!(found?, None, "somebody else runs Postgres as themselves");
    }
    Ok(())
}

fn write_tree(folder: &Path, files: &[&str]) -> anyhow::Result<()> {
    for file in files {
        let path = folder.join(file);
        std::fs::create_dir_all(path.parent().expect("below the folder"))?;
        std::fs::write(path, "content")?;
    }
    Ok(())
}

#[test]
fn an_install_is_copied_with_its_libraries() -> anyhow::Result<()> {
    let (source, target) = (tempfile::tempdir()?, tempfile::tempdir()?);
    write_tree(source.path(), &["pginstall/bin/file", "pginstall/lib/file", "unrelated/file"])?;
    let bin = copy_install(&source.path().join("pginstall/bin"), target.path())?;
    assert_eq!(std::fs::read_to_string(bin.join("file"))?, "content");
    assert_eq!(std::fs::read_to_string(bin.join("../lib/file"))?, "content");
    assert!(!bin.join("../../unrelated").exists(), "only the install is copied");
    Ok(())
}

#[test]
fn an_install_from_a_wheel_is_copied_with_the_libraries_beside_it() -> anyhow::Result<()> {
    let (source, target) = (tempfile::tempdir()?, tempfile::tempdir()?);
    write_tree(source.path(), &["package/pginstall/bin/file", "package.libs/file"])?;
    let bin = copy_install(&source.path().join("package/pginstall/bin"), target.path())?;
    assert_eq!(std::fs::read_to_string(bin.join("file"))?, "content");
    assert_eq!(std::fs::read_to_string(bin.join("../../../package.libs/file"))?, "content");
    Ok(())
}
