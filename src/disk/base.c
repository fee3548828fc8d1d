/* base.c - the raw form of a user's image: disk_prepare_base().
 *
 *   image ──qemu-img info──► raw ─────────────────────────────────► the file itself
 *                        └──► other ──qemu-img convert──► cache_dir/KEY.tmp ──rename──► cache_dir/KEY.raw
 *
 *  D20 The user's image, and what it is based on, are only read.
 *  D21 KEY is a hash of path, size and time of change of every file of the backing chain. KEY.raw appears whole or not at all. Two callers at
 *      once, in one process or two, convert once (flock on KEY.lock).
 * qemu-img finds out the format by looking into the file. A raw image that untrusted people could write must not be given here: it could
 * pretend to be a qcow2 that is based on any file of this host. Old entries of the cache are never removed. */
#include "disk/disk-private.h"
#include "disk/disk.h"

#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>

/* Ends with the thread that waits for it. */
static void die_with_parent(gpointer unused)
{
	(void)unused;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

/* Run qemu-img; on failure the error is what it said. */
static gboolean run_qemu_img(const char *const *argv, char **ret_out, GError **error)
{
	g_autofree char *out = NULL, *said = NULL;
	int status;
	if (!g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, die_with_parent, NULL, &out, &said, &status, error))
		return FALSE;
	if (!g_spawn_check_wait_status(status, NULL))
		return disk_fail(error, "%s", *g_strstrip(said) ? said : "qemu-img failed and said nothing");
	if (ret_out)
		*ret_out = g_steal_pointer(&out);
	return TRUE;
}

static json_t *image_chain(const char *image, GError **error)
{
	const char *const argv[] = { "qemu-img", "info", "--backing-chain", "--output=json", image, NULL };
	g_autofree char *out = NULL;
	json_error_t why;
	if (!run_qemu_img(argv, &out, error))
		return NULL;
	json_t *chain = json_loads(out, 0, &why);
	if (json_is_array(chain) && json_array_size(chain) > 0)
		return chain;
	disk_fail(error, "qemu-img info: not the JSON that was expected: %s", chain ? "not an array" : why.text);
	json_decref(chain);
	return NULL;
}

static const char *text_of(const json_t *chain, size_t i, const char *key)
{
	const char *text = json_string_value(json_object_get(json_array_get(chain, i), key));
	return text ? text : "";
}

/* The key of D21. Free with g_free. */
static char *chain_key(const json_t *chain, GError **error)
{
	g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
	for (size_t i = 0; i < json_array_size(chain); i++) {
		const char *name = text_of(chain, i, "filename");
		g_autofree char *path = g_canonicalize_filename(name, NULL);
		struct stat st;
		if (stat(path, &st) < 0)
			return disk_fail_errno(error, errno, "%s", name), NULL;
		g_autofree char *line = g_strdup_printf("%s\n%lld\n%lld.%09ld\n", path, (long long)st.st_size, (long long)st.st_mtim.tv_sec,
		                                        st.st_mtim.tv_nsec);
		g_checksum_update(sum, (const guchar *)line, -1);
	}
	return g_strndup(g_checksum_get_string(sum), 32);
}

static gboolean convert(const char *image, const char *format, const char *to, GError **error)
{
	g_autofree char *temporary = g_strconcat(to, ".tmp", NULL);
	const char *const argv[] = { "qemu-img", "convert", "-f", format, "-O", "raw", image, temporary, NULL };
	unlink(temporary);   /* of a conversion that was cut short */
	gboolean ok = run_qemu_img(argv, NULL, error);
	if (ok && (chmod(temporary, 0400) < 0 || rename(temporary, to) < 0))
		ok = disk_fail_errno(error, errno, "%s", to);
	if (!ok)
		unlink(temporary);
	return ok;
}

static gboolean convert_once(const char *image, const char *format, const char *to, GError **error)
{
	g_autofree char *lock_path = g_strconcat(to, ".lock", NULL);
	int fd = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), err;
	do
		err = fd < 0 || flock(fd, LOCK_EX) < 0 ? errno : 0;
	while (fd >= 0 && err == EINTR);
	gboolean ok = err ? disk_fail_errno(error, err, "%s", lock_path) : TRUE;
	if (ok && access(to, R_OK) < 0)
		ok = convert(image, format, to, error);
	disk_close(&fd);   /* gives the lock back */
	return ok;
}

static gboolean prepare(const char *image, const json_t *chain, const char *cache_dir, char **ret_base, GError **error)
{
	const char *format = text_of(chain, 0, "format");
	if (strcmp(format, "raw") == 0 && json_array_size(chain) == 1) {
		*ret_base = g_canonicalize_filename(image, NULL);
		return TRUE;
	}
	g_autofree char *key = chain_key(chain, error);
	if (!key)
		return FALSE;
	if (g_mkdir_with_parents(cache_dir, 0700) < 0)
		return disk_fail_errno(error, errno, "%s", cache_dir);
	g_autofree char *name = g_strconcat(key, ".raw", NULL);
	g_autofree char *to = g_build_filename(cache_dir, name, NULL);
	if (!convert_once(image, format, to, error))
		return FALSE;
	*ret_base = g_steal_pointer(&to);
	return TRUE;
}

gboolean disk_prepare_base(const char *image, const char *cache_dir, char **ret_base, GError **error)
{
	json_t *chain = image_chain(image, error);
	gboolean ok = chain && prepare(image, chain, cache_dir, ret_base, error);
	json_decref(chain);
	if (!ok)
		g_prefix_error(error, "image %s: ", image);
	return ok;
}
