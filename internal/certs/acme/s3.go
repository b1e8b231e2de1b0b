package acme

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// s3 is a bucket of Amazon S3 or of a server that speaks its protocol.
// Credentials stand in the URL, or come from where the AWS tools look:
// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, the role of
// the machine, container or service account.
type s3 struct {
	client *minio.Client
	bucket string
}

func newS3(u storageURL) (*s3, error) {
	var creds *credentials.Credentials
	if u.user != "" {
		creds = credentials.NewStaticV4(u.user, u.pass, "")
	} else {
		creds = credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.EnvMinio{}, &credentials.FileAWSCredentials{}, &credentials.IAM{},
		})
	}
	client, err := minio.New(u.host, &minio.Options{Creds: creds, Secure: u.secure, Region: u.region, MaxRetries: 3})
	if err != nil {
		return nil, err
	}
	client.SetAppInfo("postern", "1")
	return &s3{client, u.bucket}, nil
}

// fault brings errors of the service into our words. Its texts name bucket and
// key, no credentials.
func (s *s3) fault(key string, err error) error {
	if err == nil {
		return nil
	}
	switch r := minio.ToErrorResponse(err); {
	case r.Code == "NoSuchKey" || r.Code == "NotFound":
		return fmt.Errorf("%s: %w", key, fs.ErrNotExist)
	case r.Code == "PreconditionFailed" || r.Code == "ConditionalRequestConflict" || r.StatusCode == http.StatusPreconditionFailed || r.StatusCode == http.StatusConflict:
		return errTaken
	case r.Code == "NoSuchBucket":
		return fmt.Errorf("the bucket %s does not exist; make it, or correct autocert_dir", s.bucket)
	case r.Code == "AccessDenied" || r.StatusCode == http.StatusForbidden:
		return fmt.Errorf("the bucket %s may not be used with these credentials: %w", s.bucket, err)
	}
	return err
}

func (s *s3) get(ctx context.Context, key string) ([]byte, objectInfo, error) {
	o, err := s.client.GetObject(ctx, s.bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return nil, objectInfo{}, s.fault(key, err)
	}
	defer o.Close()
	b, err := io.ReadAll(io.LimitReader(o, maxObject))
	if err != nil {
		return nil, objectInfo{}, s.fault(key, err)
	}
	st, err := o.Stat()
	return b, objectInfo{st.ETag, st.LastModified}, s.fault(key, err)
}

func (s *s3) put(ctx context.Context, key string, value []byte, over string) (string, error) {
	o := minio.PutObjectOptions{ContentType: "application/octet-stream", DisableMultipart: true}
	switch over {
	case anyTag:
	case noTag:
		o.SetMatchETagExcept("*")
	default:
		o.SetMatchETag(over)
	}
	info, err := s.client.PutObject(ctx, s.bucket, key, bytes.NewReader(value), int64(len(value)), o)
	return info.ETag, s.fault(key, err)
}

func (s *s3) remove(ctx context.Context, key string) error {
	return s.fault(key, s.client.RemoveObject(ctx, s.bucket, key, minio.RemoveObjectOptions{}))
}

func (s *s3) list(ctx context.Context, prefix string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var out []string
	for o := range s.client.ListObjects(ctx, s.bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, s.fault(prefix, o.Err)
		}
		out = append(out, o.Key)
	}
	return out, nil
}
