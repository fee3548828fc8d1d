/* test-identity.c - base/identity.h: a child really has no rights, files are given without following links, what may not be read is lent. As root only. */
#include "base/identity.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct identity other = { .other = true, .user = 234567, .group = 234567 };
static char *dir;

static bool is_root(void)
{
	if (geteuid() != 0)
		g_test_skip("needs root");
	return geteuid() == 0;
}

static char *file(const char *name, const char *text, mode_t mode)
{
	char *path = g_build_filename(dir, name, NULL);
	g_unlink(path);
	g_assert_true(g_file_set_contents(path, text, -1, NULL));
	g_assert_cmpint(chmod(path, mode), ==, 0);
	return path;
}

static uid_t owner(const char *path)
{
	struct stat st;
	g_assert_cmpint(lstat(path, &st), ==, 0);
	return st.st_uid;
}

/* Each line of /proc/self/status, as a child says it that has become the identity. */
static void test_id1_no_rights(void)
{
	char text[8192] = "";
	int out[2];
	if (!is_root())
		return;
	g_assert_cmpint(pipe(out), ==, 0);
	pid_t child = fork();
	if (child == 0) {
		int death = 0, fd;
		bool ok = identity_become(&other, SIGUSR1) && prctl(PR_GET_PDEATHSIG, &death) == 0 && death == SIGUSR1 && setuid(0) < 0 && setgid(0) < 0;
		fd = ok ? open("/proc/self/status", O_RDONLY) : -1;
		ssize_t n = read(fd, text, sizeof text);
		_exit(n > 0 && write(out[1], text, (size_t)n) == n ? 0 : 1);
	}
	close(out[1]);
	int status;
	g_assert_cmpint(waitpid(child, &status, 0), ==, child);
	g_assert_cmpint(status, ==, 0);
	g_assert_cmpint(read(out[0], text, sizeof text - 1), >, 0);
	close(out[0]);
	const char *const lines[] = { "Uid:\t234567\t234567\t234567\t234567\n", "Gid:\t234567\t234567\t234567\t234567\n", "Groups:\t \n",
		                      "CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n",
		                      "CapBnd:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n" };
	for (size_t i = 0; i < G_N_ELEMENTS(lines); i++)
		if (!strstr(text, lines[i]))
			g_error("no line '%s' in\n%s", lines[i], text);
}

static void test_id2_links_are_not_followed(void)
{
	if (!is_root())
		return;
	g_autofree char *plain = file("plain", "x", 0600), *victim = file("victim", "x", 0600);
	g_autofree char *soft = g_build_filename(dir, "soft", NULL), *hard = g_build_filename(dir, "hard", NULL), *none = g_build_filename(dir, "none", NULL);
	GError *error = NULL;
	g_assert_true(identity_give(&other, plain, &error));
	g_assert_cmpuint(owner(plain), ==, other.user);
	g_assert_true(identity_give(&other, none, &error));
	g_assert_no_error(error);
	g_assert_cmpint(symlink(victim, soft), ==, 0);
	g_assert_false(identity_give(&other, soft, &error));
	g_clear_error(&error);
	g_assert_cmpint(link(victim, hard), ==, 0);
	g_assert_false(identity_give(&other, hard, &error));
	g_clear_error(&error);
	g_assert_cmpuint(owner(victim), ==, 0);
	g_assert_cmpuint(owner(soft), ==, 0);
	g_assert_false(identity_folder_own(&other, soft, &error));
	g_clear_error(&error);
}

static void test_folders(void)
{
	struct stat st;
	if (!is_root())
		return;
	const struct { gboolean (*make)(const struct identity *, const char *, GError **); mode_t mode; uid_t user; gid_t group; } kinds[] = {
		{ identity_folder_own, 0700, other.user, other.group }, { identity_folder_closed, 0710, 0, other.group } };
	for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++)
		for (unsigned again = 0; again < 2; again++) { /* one that is there is put right */
			g_autofree char *path = g_strdup_printf("%s/a/folder%zu", dir, i);
			g_assert_true(kinds[i].make(&other, path, NULL));
			g_assert_cmpint(stat(path, &st), ==, 0);
			g_assert_cmpuint(st.st_mode & 07777, ==, kinds[i].mode);
			g_assert_cmpuint(st.st_uid, ==, kinds[i].user);
			g_assert_cmpuint(st.st_gid, ==, kinds[i].group);
			g_assert_cmpint(chmod(path, 0777), ==, 0);
		}
}

/* The child reads it by the name that it was given, and cannot change it. */
static void test_id3_lent(void)
{
	if (!is_root())
		return;
	g_autofree char *secret = file("secret", "the text", 0600), *open_to_all = file("open", "x", 0644), *name = NULL, *same = NULL;
	int fd = -1, none = -1;
	g_assert_true(identity_lend(&other, secret, &name, &fd, NULL));
	g_assert_cmpint(fd, >=, 0);
	g_assert_cmpint(fcntl(fd, F_SETFD, 0), ==, 0);
	pid_t child = fork();
	if (child == 0) {
		bool ok = identity_become(&other, 0) && open(secret, O_RDONLY) < 0;
		execl("/bin/sh", "sh", "-c", "test \"$(cat $0)\" = 'the text' && ! echo other 2>/dev/null > $0", ok ? name : "/nonexistent", NULL);
		_exit(2);
	}
	int status;
	g_assert_cmpint(waitpid(child, &status, 0), ==, child);
	g_assert_cmpint(status, ==, 0);
	close(fd);
	g_assert_true(identity_lend(&other, open_to_all, &same, &none, NULL));
	g_assert_cmpint(none, ==, -1);
	g_assert_cmpstr(same, ==, open_to_all);
	g_autoptr(GError) error = NULL;
	g_autofree char *missing = g_build_filename(dir, "missing", NULL);
	g_assert_false(identity_lend(&other, missing, &same, &none, &error));
	g_assert_nonnull(strstr(error->message, missing));
	g_assert_cmpuint(geteuid(), ==, 0); /* our own rights over files are back */
	g_assert_cmpint(access(secret, R_OK), ==, 0);
}

static void test_users(void)
{
	struct identity who;
	g_autoptr(GError) error = NULL;
	if (!is_root())
		return;
	g_assert_false(identity_of_user("nobody-of-this-name", &who, &error));
	g_assert_nonnull(strstr(error->message, "no user 'nobody-of-this-name'"));
	g_clear_error(&error);
	g_assert_false(identity_of_user("root", &who, &error));
	g_clear_error(&error);
	g_assert_true(identity_of_user("nobody", &who, &error));
	g_assert_true(who.other && who.user != 0);
	struct identity numbered = identity_of_number(&who, 99999);
	g_assert_true(numbered.other && numbered.user == 99999 && numbered.group == 99999);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	dir = g_dir_make_tmp("vcft-identity-XXXXXX", NULL);
	g_assert_cmpint(chmod(dir, 0711), ==, 0);
	g_test_add_func("/base/identity/ID1-no-rights", test_id1_no_rights);
	g_test_add_func("/base/identity/ID2-links", test_id2_links_are_not_followed);
	g_test_add_func("/base/identity/folders", test_folders);
	g_test_add_func("/base/identity/ID3-lent", test_id3_lent);
	g_test_add_func("/base/identity/users", test_users);
	int result = g_test_run();
	g_autofree char *remove = g_strdup_printf("rm -r '%s'", dir);
	return system(remove) ? 1 : result;
}
