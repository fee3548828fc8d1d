/* pki.c - see pki.h. */
#include "base/pki.h"

#include "base/config.h"
#include "base/types.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DAY (24 * 3600)
#define HOUR 3600
#define CA_NAME "VirtCFT cluster CA"
#define PEM_MAX 16384u

typedef struct { gnutls_x509_crt_t crt; gnutls_x509_privkey_t key; } identity;    /* a certificate and its key */

static void identity_clear(identity *id)
{
	if (id->crt)
		gnutls_x509_crt_deinit(id->crt);
	if (id->key)
		gnutls_x509_privkey_deinit(id->key);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(identity, identity_clear)

struct pki_term pki_term_now(unsigned days) { return (struct pki_term){ g_get_real_time() / G_USEC_PER_SEC - HOUR, days }; }

static gboolean refuse(GError **error, const char *path, const char *why)
{
	g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE, "%s: %s", path, why);
	return FALSE;
}

/* ---- files ---- */

static gboolean make_folder(const char *path, GError **error)
{
	if (g_mkdir_with_parents(path, 0700) < 0 || chmod(path, 0700) < 0)
		return refuse(error, path, g_strerror(errno));
	return TRUE;
}

static bool write_whole(int fd, const char *data, size_t n)
{
	while (n) {
		ssize_t k = write(fd, data, n);
		if (k < 0 && errno != EINTR)
			return false;
		data += k > 0 ? k : 0;
		n -= k > 0 ? (size_t)k : 0;
	}
	return fsync(fd) == 0;
}

/* PK1, PK2 */
static gboolean write_file(const char *path, const char *data, size_t n, bool replace, GError **error)
{
	g_autofree char *fresh = g_strdup_printf("%s.new", path);
	unlink(fresh);
	int fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return refuse(error, fresh, g_strerror(errno));
	bool ok = write_whole(fd, data, n);
	close(fd);
	if (ok && renameat2(AT_FDCWD, fresh, AT_FDCWD, path, replace ? 0 : RENAME_NOREPLACE) == 0)
		return TRUE;
	int e = errno;
	unlink(fresh);
	return refuse(error, path, e == EEXIST ? "is there already; --replace makes a new one" : g_strerror(e));
}

/* Before any key is made: nothing is half replaced for a file that was not to be touched. */
static gboolean check_free(const char *path, bool replace, GError **error)
{
	return replace || access(path, F_OK) < 0 || refuse(error, path, "is there already; --replace makes a new one");
}

static gboolean write_certificate(const char *path, gnutls_x509_crt_t crt, bool replace, GError **error)
{
	char pem[PEM_MAX];
	size_t n = sizeof pem;
	int e = gnutls_x509_crt_export(crt, GNUTLS_X509_FMT_PEM, pem, &n);
	return e < 0 ? refuse(error, path, gnutls_strerror(e)) : write_file(path, pem, n, replace, error);
}

static gboolean write_key(const char *path, gnutls_x509_privkey_t key, bool replace, GError **error)
{
	char pem[PEM_MAX];
	size_t n = sizeof pem;
	int e = gnutls_x509_privkey_export_pkcs8(key, GNUTLS_X509_FMT_PEM, NULL, GNUTLS_PKCS_PLAIN, pem, &n);
	gboolean ok = e < 0 ? refuse(error, path, gnutls_strerror(e)) : write_file(path, pem, n, replace, error);
	explicit_bzero(pem, sizeof pem);
	return ok;
}

static int import(identity *id, const char *crt_text, gsize crt_n, const char *key_text, gsize key_n)
{
	gnutls_datum_t crt = { (uint8_t *)crt_text, (unsigned)crt_n }, key = { (uint8_t *)key_text, (unsigned)key_n };
	int e = gnutls_x509_crt_init(&id->crt);
	if (e >= 0)
		e = gnutls_x509_crt_import(id->crt, &crt, GNUTLS_X509_FMT_PEM);
	if (e >= 0)
		e = gnutls_x509_privkey_init(&id->key);
	return e < 0 ? e : gnutls_x509_privkey_import2(id->key, &key, GNUTLS_X509_FMT_PEM, NULL, 0);
}

static gboolean read_ca(const char *folder, identity *id, GError **error)
{
	g_autofree char *crt_file = g_build_filename(folder, "ca.pem", NULL), *key_file = g_build_filename(folder, "ca-key.pem", NULL);
	g_autofree char *crt = NULL, *key = NULL;
	gsize crt_n, key_n;
	if (!g_file_get_contents(crt_file, &crt, &crt_n, error) || !g_file_get_contents(key_file, &key, &key_n, error)) {
		g_prefix_error(error, "no CA (`virtcft pki init %s` makes one): ", folder);
		return FALSE;
	}
	int e = import(id, crt, crt_n, key, key_n);
	explicit_bzero(key, key_n);
	return e >= 0 || refuse(error, crt_file, gnutls_strerror(e));
}

/* ---- certificates ---- */

static int new_key(identity *id)
{
	int e = gnutls_x509_privkey_init(&id->key);
	return e < 0 ? e : gnutls_x509_privkey_generate(id->key, GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0);
}

static int set_numbers(identity *id)
{
	uint8_t serial[16], key_id[64];
	size_t n = sizeof key_id;
	int e = gnutls_rnd(GNUTLS_RND_NONCE, serial, sizeof serial);
	serial[0] = (uint8_t)((serial[0] & 0x7f) | 1);    /* positive, and never shorter */
	if (e >= 0)
		e = gnutls_x509_crt_set_serial(id->crt, serial, sizeof serial);
	if (e >= 0)
		e = gnutls_x509_crt_get_key_id(id->crt, 0, key_id, &n);
	return e < 0 ? e : gnutls_x509_crt_set_subject_key_id(id->crt, key_id, n);
}

/* A certificate of id->key for a common name, not yet signed. */
static int begin(identity *id, const char *name, gint64 from, gint64 end)
{
	int e = gnutls_x509_crt_init(&id->crt);
	if (e >= 0)
		e = gnutls_x509_crt_set_version(id->crt, 3);
	if (e >= 0)
		e = gnutls_x509_crt_set_key(id->crt, id->key);
	if (e >= 0)
		e = gnutls_x509_crt_set_dn_by_oid(id->crt, GNUTLS_OID_X520_COMMON_NAME, 0, name, (unsigned)strlen(name));
	if (e >= 0)
		e = gnutls_x509_crt_set_activation_time(id->crt, (time_t)from);
	if (e >= 0)
		e = gnutls_x509_crt_set_expiration_time(id->crt, (time_t)end);
	return e < 0 ? e : set_numbers(id);
}

static int sign(identity *id, const identity *ca)
{
	return gnutls_x509_crt_sign2(id->crt, ca->crt, ca->key, GNUTLS_DIG_SHA256, 0);
}

static int fill_ca(identity *id, gint64 from, gint64 end)
{
	int e = new_key(id);
	if (e >= 0)
		e = begin(id, CA_NAME, from, end);
	if (e >= 0)
		e = gnutls_x509_crt_set_basic_constraints(id->crt, 1, 0);
	if (e >= 0)
		e = gnutls_x509_crt_set_key_usage(id->crt, GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN);
	return e < 0 ? e : sign(id, id);
}

/* PK3 */
static int fill_host(identity *id, const identity *ca, const char *name, gint64 from, gint64 end)
{
	uint8_t ca_id[64];
	size_t n = sizeof ca_id;
	int e = new_key(id);
	if (e >= 0)
		e = begin(id, name, from, end);
	if (e >= 0)
		e = gnutls_x509_crt_set_basic_constraints(id->crt, 0, -1);
	if (e >= 0)
		e = gnutls_x509_crt_set_key_usage(id->crt, GNUTLS_KEY_DIGITAL_SIGNATURE);
	if (e >= 0)
		e = gnutls_x509_crt_set_key_purpose_oid(id->crt, GNUTLS_KP_TLS_WWW_SERVER, 0);
	if (e >= 0)
		e = gnutls_x509_crt_set_key_purpose_oid(id->crt, GNUTLS_KP_TLS_WWW_CLIENT, 0);
	if (e >= 0)
		e = gnutls_x509_crt_set_subject_alt_name(id->crt, GNUTLS_SAN_DNSNAME, name, (unsigned)strlen(name), GNUTLS_FSAN_SET);
	if (e >= 0)
		e = gnutls_x509_crt_get_subject_key_id(ca->crt, ca_id, &n, NULL);
	if (e >= 0)
		e = gnutls_x509_crt_set_authority_key_id(id->crt, ca_id, n);
	return e < 0 ? e : sign(id, ca);
}

gboolean pki_make_ca(const char *folder, struct pki_term term, bool replace, gint64 *ret_end, GError **error)
{
	g_autofree char *crt_file = g_build_filename(folder, "ca.pem", NULL), *key_file = g_build_filename(folder, "ca-key.pem", NULL);
	g_auto(identity) id = { 0 };
	gint64 end = term.from + (gint64)term.days * DAY;
	if (!check_free(crt_file, replace, error) || !check_free(key_file, replace, error) || !make_folder(folder, error))
		return FALSE;
	int e = fill_ca(&id, term.from, end);
	if (e < 0)
		return refuse(error, folder, gnutls_strerror(e));
	if (!write_key(key_file, id.key, replace, error) || !write_certificate(crt_file, id.crt, replace, error))
		return FALSE;
	if (ret_end)
		*ret_end = end;
	return TRUE;
}

/* As cluster.yaml has names of hosts; it is a folder's name, too. */
static gboolean check_name(const char *name, GError **error)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-");
	if (n && !name[n] && n <= VCFT_NAME_MAX && g_ascii_isalnum(name[0]))
		return TRUE;
	return refuse(error, name, "no name of a host; expected letters, digits and _.-, the first a letter or digit, at most 63");
}

gboolean pki_make_host(const char *folder, const char *name, struct pki_term term, bool replace, gint64 *ret_end, GError **error)
{
	g_auto(identity) ca = { 0 }, id = { 0 };
	if (!check_name(name, error) || !read_ca(folder, &ca, error))
		return FALSE;
	g_autofree char *own = g_build_filename(folder, name, NULL), *ca_file = g_build_filename(own, "ca.pem", NULL);
	g_autofree char *crt_file = g_build_filename(own, "cert.pem", NULL), *key_file = g_build_filename(own, "key.pem", NULL);
	gint64 end = MIN(term.from + (gint64)term.days * DAY, (gint64)gnutls_x509_crt_get_expiration_time(ca.crt));
	if (!check_free(ca_file, replace, error) || !check_free(crt_file, replace, error) || !check_free(key_file, replace, error) ||
	    !make_folder(own, error))
		return FALSE;
	int e = fill_host(&id, &ca, name, term.from, end);
	if (e < 0)
		return refuse(error, own, gnutls_strerror(e));
	if (!write_key(key_file, id.key, replace, error) || !write_certificate(crt_file, id.crt, replace, error) ||
	    !write_certificate(ca_file, ca.crt, replace, error))
		return FALSE;
	if (ret_end)
		*ret_end = end;
	return TRUE;
}
